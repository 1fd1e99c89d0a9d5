"""Estimate parameters, FLOPs, memory and disk space of a training before it is run.

One training step runs on the CPU, on small images of noise, while torch counts its operations and
the bytes of its tensors. Both are a constant part (proposals, weights) and a part in proportion to
the number of pixels, so that two small sizes tell those of the training's images.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from math import ceil
from typing import Optional

import mmcv
import numpy as np
import torch
from mmcv import Config
from mmcv.runner import build_optimizer
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gkd.detectors.modes import eval_mode
from gkd.distiller import Distiller
from gkd.errors import ConfigError, GKDError
from gkd.prototypes import PrototypeBank
from gkd.prototypes.plan import size
from gkd.running.config import build_model, naming
from gkd.running.console import without_details
from gkd.watching import watched

# Width and height of the images that are run. All strides in use divide them.
PROBES = ((256, 256), (512, 256))
WARM_UP = (128, 128)
BOXES = 8  # an image; COCO has 7.3 on average
FLOAT32 = 4


class TensorMemory(TorchDispatchMode):
    """Count the bytes of all tensors that exist, and the most that did at a time.

    Memory that an operator uses inside itself is not seen.

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
        self.now = self.peak = 0
        self._storages = set()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor, if its memory is not counted yet, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


@dataclass(frozen=True)
class Cost:
    """What one training step takes, on one device.

    Attributes:
        student: Floating-point operations of the student, forward and backward, as torch counts
            them: matrix products and convolutions, a multiplication and an addition being two.
        teacher: Those of the teacher's forward pass.
        extra: Those of distillation itself, forward and backward.
        memory: Bytes of all tensors at their peak.
        generation: Bytes of a pass of prototype generation over one image, its peak without
            weights.
    """

    student: float
    teacher: float
    extra: float
    memory: float
    generation: float

    def towards(self, other: Cost, position: float) -> Cost:
        """A step on the line through two, ``position`` 0 being this and 1 the other."""
        return Cost(*(mine + position * (theirs - mine) for mine, theirs in
                      zip(astuple(self), astuple(other))))


class Step:
    """A training step of a config with untrained weights, to be measured.

    Args:
        config: A config from :func:`gkd.running.load_config`; checkpoints need not be there.

    Raises:
        ConfigError: The model cannot be built.
    """

    def __init__(self, config: Config):
        self.model = untrained_model(config)
        with naming('optimizer'):
            self.optimizer = build_optimizer(self.model, config.optimizer)
        self.distils = isinstance(self.model, Distiller)
        self.student = self.model.student if self.distils else self.model
        if self.distils and self.model.needs.bank:
            self.model.bank = random_bank(
                self.model.pair, self.model.prototypes.pursuit['num_prototypes'])

    @property
    def weights(self) -> list[Tensor]:
        """Everything that is held all the time and has nothing to do with images."""
        modules = [self.model] + ([self.model.teacher] if self.distils else [])
        tensors = [tensor for module in modules
                   for tensor in (*module.parameters(), *module.buffers())]
        bank = self.model.bank if self.distils else None
        return tensors + ([] if bank is None else [*bank.student, *bank.teacher, *bank.offsets])

    @property
    def optimizer_state(self) -> list[Tensor]:
        """What the optimiser holds after its first step."""
        return [value for state in self.optimizer.state.values() for value in state.values()
                if isinstance(value, Tensor)]

    def cost(self, width: int, height: int, images: int) -> Cost:
        """Run the step on images of noise.

        Args:
            width: Of the images, in pixels.
            height: Likewise.
            images: Their number.

        Raises:
            ConfigError: The step cannot be run on images alone.
        """
        try:
            if not self.optimizer_state:
                self.run(*WARM_UP, images)
            memory, whole, teacher = self.run(width, height, images)
            few = min(images, 2)  # of a single image, batch normalisation may have nothing to norm
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
            data = noise(width, height, images, num_classes(self.student))
            loss = self.model.train_step(data, self.optimizer)['loss']
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return memory.peak, operations.get_total_flops(), of_teacher

    def student_operations(self, width: int, height: int, images: int) -> int:
        """Operations of the student alone."""
        data = noise(width, height, images, num_classes(self.student))
        with FlopCounterMode(display=False) as operations:
            self.student._parse_losses(self.student.forward_train(**data))[0].backward()
        return operations.get_total_flops()

    @torch.no_grad()
    def measure_generation(self, width: int, height: int) -> int:
        """Peak of a detector's pass over one image, of the detector that needs more."""
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


def untrained_model(config: Config) -> BaseDetector:
    """Build ``config.model`` with weights as layers have them, whatever its checkpoints."""
    config = Config(config._cfg_dict.to_dict(), filename=config.filename)
    if config.model.type == Distiller.__name__:
        for role in ('teacher', 'student'):
            config.model[role].checkpoint = None
    logger = mmcv.utils.get_logger('mmdet')
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would warn of the untrained weights
    try:
        with without_details():
            return build_model(config).train()
    finally:
        logger.setLevel(level)


def num_classes(detector: BaseDetector) -> int:
    """Classes of a detector."""
    head = getattr(getattr(detector, 'roi_head', None) or detector, 'bbox_head', None)
    return (head[0] if isinstance(head, nn.ModuleList) else head).num_classes


def random_bank(pair, num_prototypes: int) -> PrototypeBank:
    """A bank of a size as it will be, with random prototypes."""
    count = pair.num_classes * num_prototypes
    offsets = torch.arange(0, count + 1, num_prototypes)
    return PrototypeBank(
        student=[torch.rand(count, channels) for channels in pair.channels(pair.student)],
        teacher=[torch.rand(count, channels) for channels in pair.channels(pair.teacher)],
        offsets=[offsets.clone() for _ in pair.strides])


def noise(width: int, height: int, images: int, num_classes: int) -> dict:
    """A training batch of noise, each image with boxes of several sizes all over it."""
    generator = np.random.default_rng(0)
    data = dict(img=torch.randn(images, 3, height, width), img_metas=[], gt_bboxes=[],
                gt_labels=[])
    for _ in range(images):
        corner = generator.uniform(0, 0.7, (BOXES, 2))
        size = generator.uniform(0.1, 0.3, (BOXES, 2))
        boxes = np.concatenate([corner, corner + size], axis=1) * np.tile([width, height], 2)
        data['gt_bboxes'].append(torch.from_numpy(boxes.astype(np.float32)))
        data['gt_labels'].append(torch.from_numpy(generator.integers(0, num_classes, BOXES)))
        shape = (height, width, 3)
        data['img_metas'].append(dict(
            img_shape=shape, ori_shape=shape, pad_shape=shape, filename='noise', flip=False,
            ori_filename='noise', scale_factor=np.ones(4, np.float32)))
    return data


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will take.

    Attributes:
        gpus: Processes.
        images: Images a GPU and step.
        width: Of the largest images, in pixels.
        height: Likewise.
        cost: Of a step of one GPU.
        extrapolated: Whether it was measured on smaller images.
        parameters: Parameters of student, teacher and distillation.
        trained: Parameters that the optimiser changes.
        optimizer_bytes: State of the optimiser.
        checkpoint_bytes: One checkpoint.
        checkpoints: Checkpoints that are kept.
        learning_rate: As the config has it and as it is scaled to the batch.
        generation_images: Images a pass of prototype generation; 0 without prototypes.
    """

    gpus: int
    images: int
    width: int
    height: int
    cost: Cost
    extrapolated: bool
    parameters: dict[str, int]
    trained: int
    optimizer_bytes: int
    checkpoint_bytes: int
    checkpoints: int
    learning_rate: tuple[float, float]
    generation_images: int

    @property
    def memory_parts(self) -> dict[str, float]:
        """Bytes of a GPU at the peak of a step; the rest belongs to images."""
        weights = sum(self.parameters.values()) * FLOAT32
        # torch's DistributedDataParallel keeps gradients a second time, to send them.
        buckets = self.trained * FLOAT32 if self.gpus > 1 else 0
        return {'weights': weights, 'optimizer': self.optimizer_bytes,
                'features and gradients': self.cost.memory - weights - self.optimizer_bytes,
                'gradients to send': buckets}

    @property
    def memory(self) -> float:
        """Bytes of a GPU at the peak of the training: a step, or a generation of prototypes."""
        parts = self.memory_parts
        step = sum(parts.values())
        generation = (step - parts['features and gradients']
                      + self.generation_images * self.cost.generation)
        return max(step, generation)

    def lines(self) -> list[str]:
        """The plan in words."""
        batch = self.images * self.gpus
        base, scaled = self.learning_rate
        operations = ', '.join(f'{name} {count(getattr(self.cost, name))}FLOP'
                               for name in ('student', 'teacher', 'extra')
                               if getattr(self.cost, name))
        parts = ', '.join(f'{size(amount)} of {name}'
                          for name, amount in self.memory_parts.items() if amount)
        parameters = ', '.join(f'{name} {count(number)}'
                               for name, number in self.parameters.items() if number)
        return [f'{name + ":":16}{text}' for name, text in (
            ('parameters', f'{parameters}; {count(self.trained)} are trained'),
            ('batch', f'{self.images} images of at most {self.width} x {self.height} on each of '
                      f'{self.gpus} GPUs, {batch} a step'),
            ('learning rate', f'{scaled:g}' + (f', scaled from {base:g}' if base != scaled
                                               else ', as in the config')),
            ('a step', f'{operations} on each GPU'),
            ('memory', f'{size(self.memory)} a GPU in single precision, without what CUDA, cuDNN '
                       f'and fragmentation take; in a step {parts}'),
            ('checkpoints', f'{self.checkpoints} of {size(self.checkpoint_bytes)} each'))]


def make_plan(config: Config, gpus: int = 1, image: Optional[tuple[int, int]] = None,
              exact: bool = False, probes: Sequence[tuple[int, int]] = PROBES) -> TrainingPlan:
    """Plan a training.

    Args:
        config: A config from :func:`gkd.running.load_config`; neither data nor checkpoints are
            read.
        gpus: Processes it will run in.
        image: Width and height of the largest images; by default what the config scales to.
        exact: Run the step at full size instead of twice on smaller images.
        probes: Two smaller sizes; ignored where the images themselves are no larger.

    Raises:
        ConfigError: The model cannot be built, or its step cannot be run.
    """
    width, height = image or image_size(config)
    images = config.data.get('train_dataloader', {}).get('samples_per_gpu') or \
        config.data.get('samples_per_gpu', 1)
    step = Step(config)
    pixels = [w * h for w, h in probes]
    extrapolated = not exact and width * height > max(pixels)
    if extrapolated:
        first, second = (step.cost(*probe, images) for probe in probes)
        cost = first.towards(second, (width * height - pixels[0]) / (pixels[1] - pixels[0]))
    else:
        cost = step.cost(width, height, images)
    model = step.model
    parameters = dict(student=parameter_count(step.student))
    if step.distils:
        parameters.update(teacher=parameter_count(model.teacher),
                          extra=parameter_count(model.knowledge))
    optimizer_bytes = sum(map(tensor_bytes, step.optimizer_state))
    state = sum(map(tensor_bytes, model.state_dict().values()))
    has_bank = step.distils and model.needs.bank
    return TrainingPlan(
        gpus=gpus, images=images, width=width, height=height, cost=cost,
        extrapolated=extrapolated, parameters=parameters,
        trained=sum(parameter.numel() for parameter in model.parameters()
                    if parameter.requires_grad),
        optimizer_bytes=optimizer_bytes, checkpoint_bytes=state + optimizer_bytes,
        checkpoints=kept_checkpoints(config), learning_rate=learning_rates(config, images * gpus),
        generation_images=model.prototypes.batch_size if has_bank else 0)


def image_size(config: Config) -> tuple[int, int]:
    """Width and height of the largest images that a config scales to, padded.

    Raises:
        ConfigError: It scales to no size.
    """
    entry = config.data.train
    while 'pipeline' not in entry:
        entry = entry['dataset'] if 'dataset' in entry else entry['datasets'][0]
    for pipeline in (entry.pipeline, config.data.test.pipeline):
        steps = [step for outer in pipeline for step in (outer, *outer.get('transforms', ()))]
        scales = [scale for step in steps if 'img_scale' in step
                  for scale in (step['img_scale'] if isinstance(step['img_scale'], list)
                                else [step['img_scale']])]
        if scales:
            divisor = max(step.get('size_divisor') or 1 for step in steps)
            longest, shortest = max(map(max, scales)), max(map(min, scales))
            return tuple(ceil(side / divisor) * divisor for side in (longest, shortest))
    raise ConfigError('neither data.train nor data.test has a pipeline with `img_scale`; give the '
                      'size of the images: --size WIDTH HEIGHT')


def learning_rates(config: Config, batch: int) -> tuple[float, float]:
    """The learning rate of the config, and the one that it is scaled to."""
    rate = config.optimizer.lr
    scaling = config.get('auto_scale_lr') or {}
    if not scaling.get('enable', False):
        return rate, rate
    return rate, rate * batch / scaling.base_batch_size


def kept_checkpoints(config: Config) -> int:
    """Checkpoints that lie in the work dir at the end."""
    settings = config.get('checkpoint_config') or {}
    length = config.runner.get('max_epochs') or config.runner.get('max_iters')
    written = ceil(length / settings.get('interval', 1)) if settings.get('interval', 1) > 0 else 0
    most = settings.get('max_keep_ckpts', -1)
    return min(written, most) if most > 0 else written


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def count(number: float) -> str:
    """A number for people, with a prefix of units.

    Example:
        >>> count(41_755_286)
        '41.8 M'
    """
    for unit, factor in (('T', 10 ** 12), ('G', 10 ** 9), ('M', 10 ** 6), ('k', 10 ** 3)):
        if number >= factor:
            return f'{number / factor:.1f} {unit}'
    return f'{number:.0f} '
