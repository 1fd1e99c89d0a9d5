"""What must be known of a teacher and a student before anything can be taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

from gkd.detectors.modes import eval_mode
from gkd.errors import ConfigError
from gkd.frameworks import BaseDetector, DeltaXYWHBBoxCoder

ONE_STAGE = 'one-stage'
TWO_STAGE = 'two-stage'
# A multiple of every stride in use (NAS-FPN needs 128), small enough to cost nothing.
PROBE_SIZE = 256


@dataclass(frozen=True)
class DetectorInfo:
    """The traits of a detector that decide what it can teach or be taught.

    Attributes:
        name: Class name of the detector, for messages.
        family: ``'one-stage'`` or ``'two-stage'``.
        channels: Channels of every FPN map, finest first.
        strides: Stride of every FPN map in pixels.
        num_classes: Classes without background.
        anchors: Anchors of the dense head, which is a one-stage head or an RPN: for every level
            those of one cell, as boxes around its centre in pixels; empty for other heads.
        sigmoid: Whether classes are scored by independent sigmoids.
        samples_positives: Whether a training step chooses positive proposals or anchors.
        classifies_boxes: Whether class logits can be had for given positives.
        box_coding: Means and standard deviations of the offsets of anchors that the dense head
            regresses, four each; empty for other heads.
    """

    name: str
    family: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_classes: int
    anchors: tuple[tuple[tuple[float, ...], ...], ...]
    sigmoid: bool
    samples_positives: bool
    classifies_boxes: bool
    box_coding: tuple[tuple[float, ...], ...]

    @property
    def is_two_stage(self) -> bool:
        """Whether a RoI head classifies proposals."""
        return self.family == TWO_STAGE

    @property
    def num_anchors(self) -> int:
        """Anchors a cell; 0 for heads without anchors."""
        return len(self.anchors[0]) if self.anchors else 0

    @classmethod
    def of(cls, detector: BaseDetector, role: str) -> DetectorInfo:
        """Inspect a detector; its FPN is measured by one pass of a blank image.

        Args:
            detector: A detector built by MMDetection.
            role: ``'teacher'`` or ``'student'``, for messages.

        Raises:
            ConfigError: The detector has no feature pyramid, its parts do not fit together, or it
                is neither one-stage nor two-stage.
        """
        name = type(detector).__name__
        if not detector.with_neck:
            raise ConfigError(
                f'{role} {name} has no neck; knowledge is taught on FPN maps. '
                f'Use a config with a neck such as FPN.')
        channels, strides = measure_pyramid(detector, role)
        if getattr(detector, 'roi_head', None) is not None:
            return cls(name, TWO_STAGE, channels, strides, **two_stage_traits(detector))
        if getattr(detector, 'bbox_head', None) is not None:
            return cls(name, ONE_STAGE, channels, strides, **one_stage_traits(detector))
        raise ConfigError(f'{role} {name} has neither a `roi_head` nor a `bbox_head`; '
                          f'only one-stage and two-stage detectors are supported.')


def two_stage_traits(detector: BaseDetector) -> dict:
    """Traits read off a RoI head."""
    head = detector.roi_head.bbox_head
    # A cascade keeps one head a stage; its `_bbox_forward` wants to know which.
    cascaded = isinstance(head, torch.nn.ModuleList)
    # A shared head (C4) pools features that lie in no FPN map's space.
    standard = not cascaded and not detector.roi_head.with_shared_head
    head = head[0] if cascaded else head
    proposal_head = getattr(detector, 'rpn_head', None)
    return dict(num_classes=head.num_classes, anchors=base_anchors(proposal_head),
                sigmoid=bool(getattr(head.loss_cls, 'use_sigmoid', False)),
                samples_positives=standard, classifies_boxes=standard,
                box_coding=box_coding(proposal_head))


def one_stage_traits(detector: BaseDetector) -> dict:
    """Traits read off a dense head."""
    head = detector.bbox_head
    anchor_based = hasattr(head, 'get_anchors') and hasattr(head, 'sampler')
    return dict(num_classes=head.num_classes, anchors=base_anchors(head),
                sigmoid=bool(getattr(head, 'use_sigmoid_cls', True)),
                samples_positives=anchor_based, classifies_boxes=anchor_based,
                box_coding=box_coding(head))


def base_anchors(head: Optional[torch.nn.Module]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Anchors of one cell of every level; none if there is no head or it has no anchors."""
    levels = getattr(getattr(head, 'prior_generator', None), 'base_anchors', ())
    return tuple(tuple(map(tuple, level.tolist())) for level in levels)


def box_coding(head: Optional[torch.nn.Module]) -> tuple[tuple[float, ...], ...]:
    """Means and standard deviations of a dense head's offsets of anchors; none without those."""
    coder = getattr(head, 'bbox_coder', None)
    if not isinstance(coder, DeltaXYWHBBoxCoder) or not base_anchors(head):
        return ()
    return tuple(coder.means), tuple(coder.stds)


@torch.no_grad()
def measure_pyramid(detector: BaseDetector,
                    role: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of a detector's FPN maps, whatever its neck is called."""
    parameter = next(detector.parameters())
    image = parameter.new_zeros(1, 3, PROBE_SIZE, PROBE_SIZE)
    head = getattr(detector, 'rpn_head', None) or getattr(detector, 'bbox_head', None)
    try:
        with eval_mode(detector):
            maps = detector.extract_feat(image)
            if hasattr(head, 'forward_single'):
                head(maps)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f'the parts of {role} {type(detector).__name__} do not fit together: {error}. Check '
            f'the channels: `neck.in_channels` are the backbone\'s, the head\'s `in_channels` '
            f'the neck\'s `out_channels`.') from error
    return (tuple(int(feature.shape[1]) for feature in maps),
            tuple(round(PROBE_SIZE / feature.shape[-1]) for feature in maps))


@dataclass(frozen=True)
class DetectorPair:
    """A teacher and a student, and the pyramid levels on which they meet.

    Attributes:
        teacher: Traits of the teacher.
        student: Traits of the student.
        strides: Strides that both pyramids have, ascending: the paired levels.
    """

    teacher: DetectorInfo
    student: DetectorInfo
    strides: tuple[int, ...]

    @classmethod
    def of(cls, teacher: BaseDetector, student: BaseDetector) -> DetectorPair:
        """Inspect both detectors and pair their levels by stride.

        Raises:
            ConfigError: Class counts differ, or no stride is shared.
        """
        teacher_info = DetectorInfo.of(teacher, 'teacher')
        student_info = DetectorInfo.of(student, 'student')
        if teacher_info.num_classes != student_info.num_classes:
            raise ConfigError(
                f'teacher {teacher_info.name} has {teacher_info.num_classes} classes, student '
                f'{student_info.name} has {student_info.num_classes}; set `num_classes` of both '
                f'heads to the classes of the data set.')
        shared = tuple(sorted(set(teacher_info.strides) & set(student_info.strides)))
        if not shared:
            raise ConfigError(
                f'no pyramid level can be paired: the teacher\'s strides are '
                f'{teacher_info.strides}, the student\'s {student_info.strides}. '
                f'Choose necks whose strides overlap.')
        return cls(teacher_info, student_info, shared)

    def require_class_logits(self, key: str, advice: str) -> None:
        """Raise ConfigError unless both detectors can classify given boxes.

        Args:
            key: What asks for it, as a config names it, for the message.
            advice: What to do about it, likewise.
        """
        for role, info in (('teacher', self.teacher), ('student', self.student)):
            if not info.classifies_boxes:
                raise ConfigError(f'{key}: {role} {info.name} gives no class logits for given '
                                  f'boxes; {advice}')

    def require_same_family(self, key: str, advice: str) -> None:
        """Raise ConfigError unless both are one-stage, or both two-stage; arguments as above."""
        teacher, student = self.teacher, self.student
        if teacher.family != student.family:
            raise ConfigError(f'{key}: a {teacher.family} teacher ({teacher.name}) and a '
                              f'{student.family} student ({student.name}) predict different '
                              f'things; {advice}')

    def require_same_scores(self, key: str, advice: str) -> None:
        """Raise ConfigError unless both score by sigmoid, or by softmax; arguments as above."""
        if self.teacher.sigmoid != self.student.sigmoid:
            raise ConfigError(f'{key}: one of teacher {self.teacher.name} and student '
                              f'{self.student.name} scores classes by sigmoid, the other by '
                              f'softmax; {advice}')

    def require_same_anchors(self, key: str, advice: str) -> None:
        """Raise ConfigError unless the dense heads have the same anchors; arguments as above."""
        teacher, student = self.teacher.anchors, self.student.anchors
        if teacher != student:
            raise ConfigError(f'{key}: teacher and student have different anchors (of the first '
                              f'level: {teacher[:1]} and {student[:1]}); use one '
                              f'`anchor_generator` for both, or {advice}')

    @property
    def num_levels(self) -> int:
        """Number of paired levels."""
        return len(self.strides)

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return self.student.num_classes

    def levels(self, info: DetectorInfo) -> tuple[int, ...]:
        """Index of every paired level in the pyramid of ``info``."""
        return tuple(info.strides.index(stride) for stride in self.strides)

    def channels(self, info: DetectorInfo) -> tuple[int, ...]:
        """Channels of ``info`` on every paired level."""
        return tuple(info.channels[level] for level in self.levels(info))
