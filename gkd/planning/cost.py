"""Count the operations and the memory of a training step, on images of noise.

One step runs on the CPU with untrained weights, while torch counts its operations and the bytes of
its tensors.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from gkd.bank import PrototypeBank
from gkd.detectors.modes import eval_mode
from gkd.detectors.trial_step import further_ground_truth, start_weights
from gkd.detectors.view import fixed_size
from gkd.distiller import Distiller
from gkd.errors import ConfigError, GKDError
from gkd.frameworks import BaseDetector, Batch, Config, student_losses, synthetic_batch
from gkd.matching import check_heads_agree, num_classes_of
from gkd.planning.door import build_optimizer, total_loss, untrained_model
from gkd.randomness import isolated_random_numbers
from gkd.watching import watched

WARM_UP = (128, 128)  # width and height of the first images; all strides in use divide them
BOXES = 8  # an image; COCO has 7.3 on average


class TensorMemory(TorchDispatchMode):
    """Count the bytes of all tensors that exist, and the most that did at a time.

    Memory that an operator uses internally is not counted.

    Attributes:
        now: Bytes of the tensors that exist.
        peak: The most since the start or since it was set.

    Example:
        >>> with TensorMemory() as memory:
        ...     total = torch.zeros(1000).add(1).sum()
        >>> memory.now, memory.peak  # the zeros are gone when the sum is made
        (4, 8000)
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._sizes: dict[StorageWeakRef, int] = {}
        self._counted = 0  # including what was freed since the last look

    @property
    def now(self) -> int:
        # By looking: torch 2.1 calls no weakref.finalize of a storage.
        for storage in [storage for storage in self._sizes if storage.expired()]:
            self._counted -= self._sizes.pop(storage)
        return self._counted

    def add(self, tensor: Tensor) -> None:
        """Count a tensor, if its memory is not counted yet, until it is freed."""
        if tensor.is_sparse:  # FreeAnchor makes one; it holds two others
            self.add(tensor._indices())
            tensor = tensor._values()
        storage, size = StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
        if storage not in self._sizes:
            self._sizes[storage] = size
            self._counted += size
            if self._counted > self.peak:
                self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:  # torch 2.1 has no tree_leaves
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


@dataclass(frozen=True)
class Cost:
    """What one training step takes, on one device.

    Attributes:
        student: Floating-point operations of the student, forward and backward, as torch counts
            them: Matrix products and convolutions, a multiplication and an addition being two.
        teacher: Those of the teacher's forward pass.
        extra: Those of distillation itself, forward and backward.
        memory: Bytes of all tensors at their peak.
        generation: Peak bytes, without weights, of a pass of prototype generation over one image.
    """

    student: float
    teacher: float
    extra: float
    memory: float
    generation: float

    def towards(self, other: Cost, position: float) -> Cost:
        """The cost on the line through two costs: ``position`` 0 is this one, 1 the other."""
        return Cost(*(mine + position * (theirs - mine) for mine, theirs in
                      zip(astuple(self), astuple(other))))


class MeasuredStep:
    """A training step of a config with untrained weights, to be measured.

    Args:
        config: A config of the installed MMDetection; checkpoints need not be there.

    Raises:
        ConfigError: The model cannot be built.
    """

    def __init__(self, config: Config):
        with isolated_random_numbers():
            torch.manual_seed(0)  # what proposals cost depends on the weights
            self.model = untrained_model(config)
        check_heads_agree(self.model)
        self.optimizer = build_optimizer(self.model, config)
        for group in self.optimizer.param_groups:
            group['lr'] = 0  # all runs are to have the same weights
        self.distils = isinstance(self.model, Distiller)
        self.student = self.model.student if self.distils else self.model
        for detector in (self.student, self.model.teacher) if self.distils else (self.student,):
            start_weights(detector)
        if self.distils:  # which of more classes the teacher teaches changes no cost
            self.model.choose_columns(range(self.model.pair.num_classes))
        if self.distils and self.model.needs.bank:
            self.model.bank = random_bank(
                self.model.pair, self.model.prototypes.pursuit['num_prototypes'],
                self.model.frozen.class_channels)

    @property
    def fixed_size(self) -> Optional[int]:
        """Height and width in pixels of the only images that a detector takes; None if any."""
        detectors = [self.student, self.model.teacher] if self.distils else [self.student]
        return max(filter(None, map(fixed_size, detectors)), default=None)

    @property
    def weights(self) -> list[Tensor]:
        """Everything that is held all the time and has nothing to do with images."""
        modules = [self.model] + ([self.model.teacher] if self.distils else [])
        tensors = [tensor for module in modules
                   for tensor in (*module.parameters(), *module.buffers())]
        bank = self.model.bank if self.distils else None
        return tensors + ([] if bank is None else [
            *bank.student, *bank.teacher, *bank.offsets, *bank.class_features])

    @property
    def optimizer_state(self) -> list[Tensor]:
        """What the optimiser holds after its first step."""
        return [value for state in self.optimizer.state.values() for value in state.values()
                if isinstance(value, Tensor)]

    def cost(self, width: int, height: int, images: int) -> Cost:
        """Run the step on images of noise.

        Args:
            width: Width of the images, in pixels.
            height: Likewise.
            images: Their number.

        Raises:
            ConfigError: The step cannot be run on images alone.
        """
        try:
            if not self.optimizer_state:
                size = self.fixed_size
                self.run(*((size, size) if size else WARM_UP), images)
            memory, whole, teacher = self.run(width, height, images)
            few = min(images, 2)  # on a single image, batch normalisation may fail
            alone = images / few * self.student_operations(width, height, few)
            extra = max(whole - teacher - alone, 0)  # plain detectors have none
            return Cost(alone, teacher, extra, memory, self.measure_generation(width, height))
        except GKDError:
            raise
        except Exception as error:
            raise ConfigError(
                f'a training step of {type(self.student).__name__} cannot be run on images with '
                f'boxes of noise, {width} x {height}: {type(error).__name__}: {error}') from error

    def run(self, width: int, height: int, images: int) -> tuple[int, int, int]:
        """Run a step; its peak of memory, its operations, and those of the teacher in it."""
        memory = TensorMemory()
        for tensor in (*self.weights, *self.optimizer_state):
            memory.add(tensor)
        operations = FlopCounterMode(display=False)
        of_teacher = 0

        def counted(teacher_step, *args, **kwargs):
            nonlocal of_teacher
            before = operations.get_total_flops()
            result = teacher_step(*args, **kwargs)
            of_teacher += operations.get_total_flops() - before
            return result

        watching = watched(self.model, 'teacher_step', counted) if self.distils else nullcontext()
        with operations, memory, watching:
            loss = self.loss(self.model, width, height, images)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return memory.peak, operations.get_total_flops(), of_teacher

    def student_operations(self, width: int, height: int, images: int) -> int:
        """Operations of the student alone."""
        with FlopCounterMode(display=False) as operations:
            self.loss(self.student, width, height, images).backward()
        return operations.get_total_flops()

    def loss(self, detector: BaseDetector, width: int, height: int, images: int) -> Tensor:
        """The loss of the model, or of its student alone, on images of noise."""
        batch = noise(width, height, images, self.student)
        return total_loss(detector, student_losses(detector, batch))

    @torch.no_grad()
    def measure_generation(self, width: int, height: int) -> int:
        """Peak memory of a pass over one image, for the detector that needs more."""
        if not self.distils or not self.model.needs.bank:
            return 0
        peaks = []
        for detector in (self.model.teacher, self.student):
            memory = TensorMemory()
            for tensor in self.weights:
                memory.add(tensor)
            before = memory.now
            with memory, eval_mode(detector):
                detector.extract_feat(torch.zeros(1, 3, height, width))
            peaks.append(memory.peak - before)
        return max(peaks)


def random_bank(pair, num_prototypes: int, class_channels: int = 0) -> PrototypeBank:
    """A bank of the size that it will have, with random prototypes.

    Args:
        pair: Traits of teacher and student.
        num_prototypes: Prototypes a class and level.
        class_channels: Channels of the class space; 0 if the bank needs none.
    """
    count = pair.num_classes * num_prototypes
    offsets = torch.arange(0, count + 1, num_prototypes)
    return PrototypeBank(
        student=[torch.rand(count, channels) for channels in pair.channels(pair.student)],
        teacher=[torch.rand(count, channels) for channels in pair.channels(pair.teacher)],
        offsets=[offsets.clone() for _ in pair.strides],
        class_features=[torch.rand(count, class_channels) for _ in pair.strides
                        if class_channels])


def noise(width: int, height: int, images: int, student: BaseDetector) -> Batch:
    """A training batch of noise, each image with boxes of several sizes all over it.

    It has what else the student trains on, such as masks.
    """
    generator = np.random.default_rng(0)
    pixels = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(0))
    classes = num_classes_of(student)
    boxes, labels = [], []
    for _ in range(images):
        corner = generator.uniform(0, 0.7, (BOXES, 2))
        size = generator.uniform(0.1, 0.3, (BOXES, 2))
        corners = np.concatenate([corner, corner + size], axis=1) * np.tile([width, height], 2)
        boxes.append(torch.from_numpy(corners.astype(np.float32)))
        labels.append(torch.from_numpy(generator.integers(0, classes, BOXES)))
    return synthetic_batch(pixels, boxes, labels,
                           **further_ground_truth(student, boxes[0], height, width))
