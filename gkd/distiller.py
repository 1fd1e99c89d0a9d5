"""The detector that is trained: a student, taught by a frozen teacher."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gkd.argument_types import check_types
from gkd.bank import PrototypeBank
from gkd.detectors import one_stage, two_stage
from gkd.detectors.fast_copy import widened
from gkd.detectors.images import ChannelMap, ImageFormat
from gkd.detectors.inherit import check_inherited, inherit
from gkd.detectors.inspection import inspect_pair
from gkd.detectors.source import DetectorSource
from gkd.detectors.step import DetectorOutputs, Needs, Step
from gkd.detectors.teacher import Teacher
from gkd.errors import ConfigError, naming
from gkd.files import checksum
from gkd.frameworks import (
    CLASSES_SETTING,
    DETECTORS,
    BaseDetector,
    Batch,
    Dataset,
    DetectorShell,
    build_detector,
    image_settings,
    logger,
    student_losses,
)
from gkd.knowledge.build import build_knowledge
from gkd.knowledge.checks import check_entries, check_gradients, check_losses
from gkd.prototypes.generation import Generation, build_generation


@DETECTORS.register_module()
class Distiller(DetectorShell):
    """A trainable student and a frozen teacher; to MMDetection it is a detector like any other.

    In training it adds the losses of every kind of knowledge to the student's own detection
    losses; in testing it *is* the student. The teacher stays in eval mode without gradients, is
    unknown to the optimiser and is absent from checkpoints, but moves between devices with the
    student.

    Args:
        teacher: ``dict(config=..., checkpoint=..., precision=...)``; see :class:`DetectorSource`
            and :class:`~gkd.detectors.teacher.Teacher`.
        student: ``dict(config=..., checkpoint=...)``; without a checkpoint the student starts as
            its own config initialises it. ``inherit=['neck', 'bbox_head']`` names parts that start
            with the teacher's weights instead.
        knowledge: Configs of what is taught, each of a type registered in ``KNOWLEDGE``. Empty:
            the student trains exactly as without a teacher.
        prototypes: Config of the :class:`PrototypeGenerationModule`; needed by kinds of knowledge
            that use prototypes.
        train_cfg: Must stay None: it belongs into the student's config.
        test_cfg: Must stay None, likewise.
        init_cfg: Must stay None, likewise.
        data_preprocessor: Must stay None, likewise. MMEngine passes on one that stands beside the
            model.

    Attributes:
        bank: The current :class:`PrototypeBank`, set by the :class:`PrototypeHook`.
        progress: Epochs done / epochs in all, set by the :class:`PrototypeHook`.
        teacher_images: Converts the images of a training step into the format that the teacher was
            trained on; None if they already have it. It is set from the config's pipelines.

    Raises:
        ConfigError: The two detectors cannot be paired, or a kind of knowledge cannot serve them.
        CheckpointError: A checkpoint does not fit its config.

    Example:
        >>> detector = dict(config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        ...                 overrides={'bbox_head.num_classes': 3, 'bbox_head.stacked_convs': 1})
        >>> model = build_detector(dict(
        ...     type='Distiller', teacher=dict(detector, checkpoint=None), student=detector,
        ...     knowledge=[dict(type='PKD')]))
        >>> model.pair.strides
        (8, 16, 32, 64, 128)
        >>> {name.split('.')[0] for name, _ in model.named_parameters()}  # none of the teacher
        {'student'}
    """

    def __init__(self, teacher: dict, student: dict, knowledge: tuple = (),
                 prototypes: Optional[dict] = None, train_cfg: Any = None, test_cfg: Any = None,
                 init_cfg: Any = None, data_preprocessor: Any = None):
        super().__init__()
        if any(cfg is not None for cfg in (train_cfg, test_cfg, init_cfg)):
            raise ConfigError('`train_cfg`, `test_cfg` and `init_cfg` do not belong into the '
                              'Distiller\'s `model`; put them into the student\'s own config.')
        if data_preprocessor is not None:
            raise ConfigError('`data_preprocessor` belongs into the configs of teacher and '
                              'student alone: set it to None in the `model` and at the top of the '
                              'config that has the Distiller.')
        check_entries(knowledge, 'model.knowledge')
        check_types(Distiller.__init__, dict(prototypes=prototypes), 'model')
        self.student_source = DetectorSource.parse(student, 'model.student')
        teacher_source = DetectorSource.parse(teacher, 'model.teacher', checkpoint_required=True)
        with naming('model.student cannot be built', RuntimeError, OSError):
            self.student = build_detector(self.student_source.model_config())
        self.adopt(self.student)

        # The student must start from the same random numbers as one that trains alone.
        with torch.random.fork_rng(devices=[]):
            with naming('model.teacher cannot be built', RuntimeError, OSError):
                teacher_model = build_detector(teacher_source.model_config())
            teacher_source.load_checkpoint(teacher_model)
            self.pair = inspect_pair(teacher_model, self.student)
            self.knowledge = nn.ModuleList(build_knowledge(cfg, self.pair) for cfg in knowledge)
        check_inherited(self.student, teacher_model, self.student_source.inherit)
        self.needs = reduce(operator.or_, (kind.needs for kind in self.knowledge), Needs())
        # No nn.Module, so that no optimiser, checkpoint, DDP or `.train()` finds its weights.
        self.frozen = Teacher(teacher_model, teacher_source.precision, teacher_source.graphs,
                              self.needs.class_layers)

        if self.needs.bank and prototypes is None:
            raise ConfigError('a kind of knowledge needs prototypes: add `prototypes=dict(type='
                              '"PrototypeGenerationModule")` to `model`.')
        self.prototypes = build_generation(prototypes) if self.needs.bank else None
        self.bank: Optional[PrototypeBank] = None
        self.progress = 0.0
        self.has_taught = False
        # Columns of the student's classes in the teacher's logits, if the teacher has more
        # classes. They follow from the class names, so no checkpoint holds them; no buffer, as
        # mmcv writes every buffer into its checkpoints, those that are not persistent too.
        self.teacher_columns: Optional[Tensor] = None
        self.teacher_source = teacher_source
        self.teacher_images = preprocessing_map(self.student, teacher_model)

    @property
    def teacher(self) -> BaseDetector:
        """The teacher, in the precision that it computes in."""
        return self.frozen.running

    def choose_classes(self, names: Sequence[str], key: str) -> None:
        """Find the student's classes among those of a teacher that has more, by their names.

        Args:
            names: The student's classes, as the data set numbers them.
            key: Place of the data set in the config, for messages.

        Raises:
            ConfigError: The teacher does not know one of them, nothing names its classes, or
                the student detects more or fewer.
        """
        count, taught = self.pair.teacher.num_classes, getattr(self.teacher, 'CLASSES', None) or ()
        if count == self.pair.num_classes or not self.knowledge:
            return
        if len(taught) != count:
            raise ConfigError(
                f'model.teacher.checkpoint: the teacher has {count} classes, {key} has '
                f'{len(names)}, and {len(taught) or "none"} of the teacher\'s are named: name '
                f'all, in their order, in model.teacher.classes.')
        missing = [name for name in names if name not in taught]
        if missing:
            raise ConfigError(
                f'model.teacher.checkpoint: the teacher knows {len(taught)} classes, but not '
                f'{", ".join(missing)}, which {key} has; take a teacher that knows all '
                f'classes, or set `num_classes` of its head to them and train it on them.')
        if len(names) != self.pair.num_classes:
            raise ConfigError(
                f'{key} names {len(names)} classes, the student detects {self.pair.num_classes}: '
                f'set `num_classes` of its heads or `{CLASSES_SETTING}` of the data sets so that '
                f'they agree.')
        self.choose_columns([taught.index(name) for name in names])

    def choose_columns(self, classes: Iterable[int]) -> None:
        """Take the student's classes from a teacher that has more.

        Args:
            classes: The teacher's numbers of the student's classes.
        """
        teacher = self.pair.teacher
        if teacher.num_classes == self.pair.num_classes:
            return
        background = [] if teacher.sigmoid else [teacher.num_classes]
        self.teacher_columns = torch.tensor([*classes, *background],
                                            device=next(self.parameters()).device)

    def __getattr__(self, name: str) -> Any:
        """Look up on the student what the distiller lacks, so that hooks see that detector."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith('__') or 'student' not in self.__dict__.get('_modules', ()):
                raise
            return getattr(self.student, name)

    def init_weights(self) -> None:
        """Give the student its initial weights.

        They come from its checkpoint, or else from the initialisation in its config; inherited
        parts get the teacher's weights. A teacher without a checkpoint is initialised as its
        config says, too: until then some of its parts, such as SSD's scales, are uninitialised
        memory.
        """
        if self.teacher_source.checkpoint is None:
            with torch.random.fork_rng(devices=[]):
                self.frozen.exact.init_weights()
            self.frozen.apply(lambda tensor: tensor)
        if self.student_source.checkpoint is None:
            self.student.init_weights()
            unused = self.student_source.own_start()
            if unused:
                logger().warning(
                    f'model.student.checkpoint is not set: the student does not start with '
                    f'{unused}, with which the training of {self.student_source.config} alone '
                    f'starts. If it should, name that as model.student.checkpoint.')
        else:
            self.student_source.load_checkpoint(self.student)
        inherit(self.student, self.frozen.exact, self.student_source.inherit)

    @torch.no_grad()
    def generate_bank(self, datasets: Sequence[Dataset], folder: str) -> Generation:
        """Choose prototypes with the student's current weights, and teach with them from now on.

        All processes call this together.

        Args:
            datasets: Data sets with annotations and the test pipeline.
            folder: Where the teacher's features are kept for a resumed run.

        Returns:
            The bank, with the SHA-256 of the student's weights in its metadata, and what it was
            chosen from; on the CPU.

        Raises:
            DataError: No instance is large enough to become a prototype.
            ValueError: A feature is not finite.
        """
        if dist.is_initialized():
            # Every process has its own statistics of batch normalisation.
            for buffer in self.student.buffers():
                dist.broadcast(buffer, 0)
        generation = self.prototypes.generate(
            self.teacher, self.student, self.pair.levels(self.pair.teacher),
            self.pair.levels(self.pair.student), datasets, folder, self.frozen.class_layers)
        weights = {name: tensor.cpu() for name, tensor in self.student.state_dict().items()}
        generation.bank.metadata['student'] = checksum(weights, {})
        self.bank = generation.bank.to(next(self.parameters()).device)
        return generation

    def _apply(self, fn, *args, **kwargs):
        # `.to()`, `.cuda()` and `.half()` reach the hidden teacher through here.
        self.frozen.apply(fn)
        if self.teacher_columns is not None:
            self.teacher_columns = fn(self.teacher_columns)
        return super()._apply(fn, *args, **kwargs)

    def losses(self, batch: Batch) -> dict[str, Any]:
        """Detection losses of the student, and the losses of every kind of knowledge.

        Args:
            batch: Images and ground truth.

        Returns:
            Losses by name.

        Raises:
            ConfigError: There are no prototypes although they are needed, or what a kind of
                knowledge returns cannot be trained by.
        """
        if not self.knowledge:
            return student_losses(self.student, batch)
        if self.needs.bank and self.bank is None:
            raise ConfigError('no prototypes have been generated: add '
                              'dict(type="PrototypeHook") to custom_hooks.')
        losses, step = self.observe(batch)
        for kind in self.knowledge:
            taught = kind(step)
            check_losses(kind, taught)
            if not self.has_taught:
                check_gradients(kind, taught, step)
            twice = losses.keys() & taught.keys()
            if twice:
                raise ConfigError(
                    f'model.knowledge: {type(kind).__name__}.forward returned '
                    f'{", ".join(sorted(twice))}, as the student or an earlier entry of '
                    f'model.knowledge did: give each loss a name of its own, and list every kind '
                    f'of knowledge once.')
            losses.update(taught)
        # Only once: later a method may have nothing to teach in some steps.
        self.has_taught = self.has_taught or any(map(len, step.gt_boxes))
        return losses

    def observe(self, batch: Batch) -> tuple[dict[str, Any], Step]:
        """The student's detection losses, and the step as both detectors saw it."""
        losses, step = self.student_step(batch)
        images = step.images
        if self.teacher_images is not None:
            images = self.teacher_images(images, step.image_sizes)
        step.teacher = self.teacher_step(images, step)
        step.bank, step.progress = self.bank, self.progress
        step.class_layers = self.frozen.class_layers
        return losses, step

    def student_step(self, batch: Batch) -> tuple[dict[str, Any], Step]:
        """The student's losses, and the step with the student's part."""
        family = two_stage if self.pair.student.is_two_stage else one_stage
        return family.student_step(self.student, self.pair, self.needs, batch)

    def teacher_step(self, images: Tensor, step: Step) -> DetectorOutputs:
        """The teacher's part of the step."""
        family = two_stage if self.pair.teacher.is_two_stage else one_stage
        part = family.teacher_step(self.teacher, self.pair, self.needs, images, step)
        if self.frozen.dtype is not None:
            part.maps = tuple(map(widened, part.maps))
            part.class_maps = tuple(map(widened, part.class_maps))
            if part.class_features is not None:
                part.class_features = widened(part.class_features)
            self.frozen.check()
        if self.pair.teacher.num_classes != self.pair.num_classes:
            self.keep_students_classes(part)
        return part

    def keep_students_classes(self, part: DetectorOutputs) -> None:
        """Reduce the teacher's logits of a step to the student's classes, in the student's order.

        Raises:
            ConfigError: The names of the student's classes are not known.
        """
        needs = self.needs
        wanted = needs.logits or needs.proposals or needs.dense or needs.score_maps
        if wanted and self.teacher_columns is None:
            raise ConfigError(f'the teacher has {self.pair.teacher.num_classes} classes, the '
                              f'student {self.pair.num_classes}, and it is not known which they '
                              f'are; tools/train.py takes their names from the training data.')
        for name in ('logits', 'proposal_logits'):
            if getattr(part, name) is not None:
                setattr(part, name, getattr(part, name)[:, self.teacher_columns])
        part.stage_logits = [logits[:, self.teacher_columns] for logits in part.stage_logits]
        # The logits of an RPN only tell objects from background.
        if part.dense is not None and not self.pair.teacher.is_two_stage:
            part.dense.logits = part.dense.logits[..., self.teacher_columns]
        num_logits = self.pair.teacher.num_classes + (not self.pair.teacher.sigmoid)
        part.score_maps = tuple(
            level.unflatten(1, (-1, num_logits))[:, :, self.teacher_columns].flatten(1, 2)
            for level in part.score_maps)


def preprocessing_map(student: BaseDetector, teacher: BaseDetector) -> Optional[ChannelMap]:
    """The conversion of images from the student's own preprocessor to those of the teacher's.

    None if both make the same images, or if a pipeline makes them.

    Raises:
        ConfigError: They cannot be converted.
    """
    settings = [image_settings(detector) for detector in (student, teacher)]
    if None in settings:
        return None
    given, wanted = map(ImageFormat.of_preprocessor, settings)
    found = ChannelMap(given, wanted)
    if found.is_identity:
        return None
    logger().info(f'The teacher was trained on images of {wanted}, the student\'s preprocessor '
                  f'makes {given}: they are converted for it.')
    return found
