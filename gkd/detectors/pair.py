"""What must be known about a teacher and a student before anything can be taught."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from gkd.errors import PairError

ONE_STAGE = 'one-stage'
TWO_STAGE = 'two-stage'


@dataclass(frozen=True)
class DetectorInfo:
    """The traits of a detector that decide what it can teach or be taught.

    Attributes:
        name: Class name of the detector, for messages.
        family: ``'one-stage'`` or ``'two-stage'``.
        channels: Channels of every map that the head gets: the neck's or, without one, the
            backbone's.
        strides: Stride of every map in pixels.
        num_classes: Classes without background.
        anchors: Anchors of the dense head, which is a one-stage head or an RPN: for every level
            those of one cell, as boxes around its centre in pixels; empty for other heads.
        sigmoid: Whether classes are scored by independent sigmoids.
        samples_positives: Whether a training step chooses positive proposals or anchors that can
            be recorded.
        has_class_layers: Whether the layers can be had by which the head reads classes before it
            scores them: those of a dense head if they are the same for the maps of all levels,
            or those of a RoI head that needs nothing but maps and boxes.
        roi_strides: Strides of the maps that such a RoI head pools from; empty for other heads.
        trains_places: Whether a training step that samples nothing shows which places of the maps
            it trains as objects.
        classifies_boxes: Whether class logits can be had for given positives.
        box_coding: Means and standard deviations of the offsets of anchors that the dense head
            regresses, four each; empty for other heads.
        predicts_densely: Whether class logits and box regressions can be had for every place.
        scores_apart: Whether the class scores of the dense head do not depend on the layers that
            regress boxes.
        probabilities: Whether the dense head returns probabilities instead of class logits.
        pools_maps: Whether the RoI head pools each box from one level, and its features lie in
            the space of the maps.
        image_channels: Channels of the images.
        ground_truth: What training wants besides boxes and labels, as pipelines collect it.
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
    predicts_densely: bool = True
    probabilities: bool = False
    pools_maps: bool = True
    image_channels: int = 3
    ground_truth: tuple[str, ...] = ()
    trains_places: bool = False
    has_class_layers: bool = False
    roi_strides: tuple[int, ...] = ()
    scores_apart: bool = False

    @property
    def places(self) -> tuple[int, ...]:
        """Number of predictions of the dense head per cell, on every level."""
        return tuple(map(len, self.anchors)) or (1,) * len(self.strides)

    @property
    def is_two_stage(self) -> bool:
        """Whether a RoI head classifies proposals."""
        return self.family == TWO_STAGE


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

    def require_positives(self, key: str, advice: str) -> None:
        """Raise PairError unless the student samples positive boxes.

        Args:
            key: What requires it, as named in a config, for the message.
            advice: What to do about it, likewise.
        """
        if not self.student.samples_positives:
            raise PairError(f'{key}: student {self.student.name} samples no positive boxes; '
                            f'{advice}')

    def require_class_logits(self, key: str, advice: str) -> None:
        """Raise PairError unless both detectors can classify given boxes; arguments as above."""
        for role, info in (('teacher', self.teacher), ('student', self.student)):
            if not info.classifies_boxes:
                raise PairError(f'{key}: {role} {info.name} gives no class logits for given '
                                f'boxes; {advice}')

    def require_dense_predictions(self, key: str, advice: str) -> None:
        """Raise PairError unless both predict at every place; arguments as above."""
        for role, info in (('teacher', self.teacher), ('student', self.student)):
            if not info.predicts_densely:
                raise PairError(f'{key}: {role} {info.name} does not predict classes and boxes '
                                f'at every place of its maps; {advice}')

    def require_class_layers(self, key: str, advice: str) -> None:
        """Raise PairError unless layers of the teacher's head read classes from both's maps.

        Args:
            key: As for :meth:`require_class_logits`.
            advice: Likewise.
        """
        teacher = self.teacher
        if not teacher.has_class_layers:
            raise PairError(f'{key}: teacher {teacher.name} has no layers that read classes '
                            f'from maps alone, as the heads of RetinaNet and Faster R-CNN have; '
                            f'{advice}')
        missing = sorted(set(teacher.roi_strides) - set(self.strides))
        if missing:
            raise PairError(f'{key}: the RoI head of teacher {teacher.name} reads maps of '
                            f'strides {teacher.roi_strides}, and student {self.student.name} '
                            f'has none of {", ".join(map(str, missing))}; {advice}')

    def require_same_family(self, key: str, advice: str) -> None:
        """Raise PairError unless both are one-stage, or both two-stage; arguments as above."""
        teacher, student = self.teacher, self.student
        if teacher.family != student.family:
            raise PairError(f'{key}: a {teacher.family} teacher ({teacher.name}) and a '
                            f'{student.family} student ({student.name}) predict different '
                            f'things; {advice}')

    def require_same_scores(self, key: str, advice: str) -> None:
        """Raise PairError unless both score by sigmoid, or by softmax; arguments as above."""
        if self.teacher.sigmoid != self.student.sigmoid:
            raise PairError(f'{key}: one of teacher {self.teacher.name} and student '
                            f'{self.student.name} scores classes by sigmoid, the other by '
                            f'softmax; {advice}')

    def require_same_anchors(self, key: str, advice: str) -> None:
        """Raise PairError unless the dense heads have the same anchors; arguments as above."""
        teacher, student = self.teacher.anchors, self.student.anchors
        if teacher != student:
            raise PairError(f'{key}: teacher and student have different anchors '
                            f'({difference(teacher, student)}); use one `anchor_generator` for '
                            f'both, or {advice}')

    def require_same_places(self, key: str, advice: str) -> None:
        """Raise PairError unless the dense heads predict at the same places.

        That is, the heads have the same anchors, or both predict once per cell on maps of the same
        strides, with any anchors. Arguments as above.
        """
        teacher, student = self.teacher, self.student
        if {*teacher.places, *student.places} != {1}:
            self.require_same_anchors(key, advice)
        if teacher.strides != student.strides:
            raise PairError(f'{key}: teacher and student predict on maps of different strides '
                            f'({teacher.strides} and {student.strides}); {advice}')

    def require_logits_of_positives(self, key: str, advice: str) -> None:
        """Raise PairError unless both detectors classify the positives that the student samples.

        A RoI head classifies whatever boxes it is given. A dense head has logits at its own places
        alone, so a one-stage teacher must predict at the places of a one-stage student. Arguments
        as above.
        """
        self.require_class_logits(key, advice)
        if not self.teacher.is_two_stage:
            self.require_same_family(key, advice)
            self.require_same_places(key, advice)

    def require_logits_of_proposals(self, key: str, advice: str) -> None:
        """Raise PairError unless both detectors classify proposals; arguments as above."""
        for role, info in (('teacher', self.teacher), ('student', self.student)):
            if not info.is_two_stage:
                raise PairError(f'{key}: {role} {info.name} is {info.family} and classifies no '
                                f'proposals; {advice}')
        self.require_class_logits(key, advice)

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
        # If several maps have the same stride, as in stacked hourglasses, the last is the best.
        last = {stride: level for level, stride in enumerate(info.strides)}
        return tuple(last[stride] for stride in self.strides)

    def channels(self, info: DetectorInfo) -> tuple[int, ...]:
        """Channels of ``info`` on every paired level."""
        return tuple(info.channels[level] for level in self.levels(info))


def difference(teacher: tuple, student: tuple) -> str:
    """In what the anchors of two heads differ, in words.

    Args:
        teacher: As :attr:`DetectorInfo.anchors`.
        student: Likewise.

    Example:
        >>> difference((((-4, -4, 4, 4), (-8, -4, 8, 4)),), ())
        'on level 0 the teacher has 2 a cell, 8x8, 16x8 pixels; the student has none'
        >>> difference((((-4, -4, 4, 4),),), (((0, 0, 8, 8),),))
        'on level 0 both have 1 a cell, 8x8 pixels, but around other centres'
    """
    level, pair = next((level, pair) for level, pair in enumerate(zip_longest(teacher, student))
                       if pair[0] != pair[1])
    first, second = (sizes(anchors or ()) for anchors in pair)
    if first == second:
        return f'on level {level} both have {in_words(first)}, but around other centres'
    return (f'on level {level} the teacher has {in_words(first)}; the student has '
            f'{in_words(second)}')


def sizes(anchors: tuple) -> list[tuple[float, float]]:
    """Width and height of the anchors of a cell, in pixels."""
    return [(right - left, bottom - top) for left, top, right, bottom in anchors]


def in_words(anchors: list[tuple[float, float]]) -> str:
    """How many anchors a cell has, and how large they are."""
    if not anchors:
        return 'none'
    listed = ', '.join(f'{width:.0f}x{height:.0f}' for width, height in anchors)
    return f'{len(anchors)} a cell, {listed} pixels'
