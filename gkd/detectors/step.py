"""One training step, as student and teacher saw it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any, Optional

from torch import Tensor, nn

from gkd.bank import PrototypeBank
from gkd.watching import watched


@dataclass(frozen=True)
class Needs:
    """What kinds of knowledge need from a step, besides maps and boxes.

    Attributes:
        logits: Class logits of both detectors at the student's positives.
        proposals: Class logits of both at all proposals that a two-stage student sampled.
        anchors: Anchors of the student's dense head.
        dense: Class logits of the dense heads of both at all places.
        boxes: Also the boxes that these heads predict there, with their anchors; together with
            ``dense``.
        score_maps: Class logits of the dense heads of both one-stage detectors, as their maps.
        bank: A prototype bank, which must have been generated.
        class_layers: The layers with which the teacher's head reads classes from maps; of a
            two-stage teacher together with ``proposals``.

    Example:
        >>> Needs(dense=True) | Needs(bank=True)
        Needs(logits=False, proposals=False, anchors=False, dense=True, boxes=False,
              score_maps=False, bank=True, class_layers=False)
    """

    logits: bool = False
    proposals: bool = False
    anchors: bool = False
    dense: bool = False
    boxes: bool = False
    score_maps: bool = False
    bank: bool = False
    class_layers: bool = False

    def __or__(self, other: Needs) -> Needs:
        """The needs of both together."""
        return Needs(*map(operator.or_, astuple(self), astuple(other)))


@dataclass
class DensePredictions:
    """What a dense head predicted at all ``N`` places: a one-stage head, or a two-stage's RPN.

    Places are numbered over paired levels (finest first), rows, columns and the anchors of a cell,
    in this order.

    Attributes:
        logits: Class logits ``(B, N, num_logits)``; an RPN has a single one, object or not. None
            if the head predicts them otherwise, or if no kind of knowledge needs ``dense``.
        counts: Places on every paired level; they sum to ``N``.
        anchors: Anchors ``(N, 4)`` as ``x1, y1, x2, y2`` in pixels; None for a head without, or if
            no kind of knowledge needs ``anchors`` or ``boxes``.
        boxes: Predicted boxes ``(B, N, 4)`` in pixels, without gradient; None if the head does not
            regress offsets of anchors, or if no kind of knowledge needs ``boxes``.
        deltas: Offsets as predicted ``(B, N, 4)``; None likewise.
    """

    logits: Optional[Tensor]
    counts: tuple[int, ...]
    anchors: Optional[Tensor] = None
    boxes: Optional[Tensor] = None
    deltas: Optional[Tensor] = None


@dataclass
class DetectorOutputs:
    """What one detector computed in a training step, on the levels that both detectors have.

    ``n`` is the number of the step's positives, ``m`` that of its sampled proposals; both are the
    student's choice, and the teacher is asked about the same boxes.

    Attributes:
        maps: FPN maps ``(B, C, H_l, W_l)``, one per paired level, finest first.
        logits: Class logits at the positives, ``(n, num_logits)``; the teacher's only if a kind of
            knowledge needs ``logits``.
        roi_features: RoI-pooled features of the positives, ``(n, C, h, w)``; two-stage only, the
            teacher's likewise.
        proposal_logits: Class logits at the sampled proposals, ``(m, num_logits)``; two-stage
            only, the teacher's only if a kind of knowledge needs ``proposals``.
        dense: Predictions at all places; only if a kind of knowledge needs ``dense`` or, the
            student's, ``anchors``.
        score_maps: Class logits of the dense head of a one-stage detector,
            ``(B, A_l * num_logits, H_l, W_l)``; only if a kind of knowledge needs ``score_maps``.
        class_maps: What the teacher's dense head reads from its maps by its class layers,
            ``(B, D, H_l, W_l)``; the teacher's only, and only if a kind of knowledge needs
            ``class_layers``.
        class_features: What the RoI head of a two-stage teacher reads of the sampled proposals,
            ``(m, D)``; likewise.
        stage_logits: Class logits of each of the step's ``stages`` at its own ``n_k`` positives,
            ``(n_k, num_logits)``; the teacher's are of the same stage if it is a cascade.
    """

    maps: tuple[Tensor, ...]
    logits: Optional[Tensor] = None
    roi_features: Optional[Tensor] = None
    proposal_logits: Optional[Tensor] = None
    dense: Optional[DensePredictions] = None
    score_maps: tuple[Tensor, ...] = ()
    class_maps: tuple[Tensor, ...] = ()
    class_features: Optional[Tensor] = None
    stage_logits: list[Tensor] = field(default_factory=list)


@dataclass
class Stage:
    """A later stage of a cascade student: the ``n`` positives that it trained on.

    Attributes:
        boxes: The positives of every image, ``(n_b, 4)`` as ``x1, y1, x2, y2`` in pixels.
        labels: Class of the ground truth that each was assigned to, ``(n,)``, int64.
        loss_weight: Factor of the stage's own losses.
    """

    boxes: list[Tensor]
    labels: Tensor
    loss_weight: float


@dataclass
class Step:
    """A training step as both detectors saw it: all that a kind of knowledge reads.

    Images, boxes and levels are shared; what a detector computed from them is its own part. The
    student's part is taken from the very forward pass that gives its detection losses.

    Attributes:
        images: The batch as the student saw it, ``(B, C, H, W)``, padding included.
        image_sizes: Height and width of every image in pixels, without its padding.
        strides: Stride of every paired level in pixels, finest first.
        gt_boxes: Ground-truth boxes of every image, ``(g_b, 4)`` as ``x1, y1, x2, y2`` in pixels.
        gt_labels: Class of every ground-truth box, ``(g_b,)``, int64.
        student: What the student computed; gradients flow into it.
        teacher: What the teacher computed, without gradient; None until it has run.
        bank: The current prototypes; None unless a kind of knowledge needs ``bank``.
        progress: Epochs done / epochs in all, in [0, 1).
        class_layers: The frozen layers of the teacher's head between maps and its class scores,
            in full precision; of a two-stage teacher
            :class:`~gkd.detectors.roi_heads.RoIClassLayers`. Only if a kind of knowledge needs
            ``class_layers``.
        boxes: The positives, proposals (two-stage) or anchors (one-stage) of every image that the
            student's sampler chose, ``(n_b, 4)``; None for a student that samples neither. ``n``
            is the sum of all ``n_b``.
        labels: Class of the ground truth that each positive was assigned to, ``(n,)``, int64.
        objects: Ground truth that each positive was assigned to, ``(n,)`` int64, counted over
            the batch: an index into ``torch.cat(gt_boxes)``.
        roi_levels: Paired level that the student pooled each positive from, ``(n,)``; two-stage
            students only.
        positions: Where each positive is among all anchors of the student, ``(n, 2)`` int64 as
            image and anchor; one-stage students only.
        place_labels: Class that each place of ``student.dense`` was trained as, ``(B, N)`` int64,
            the number of classes for background; only for one-stage students that sample nothing
            but show what they train, and only if a kind of knowledge needs ``dense``.
        stages: The stages after the first of a cascade student; only if a kind of knowledge needs
            ``logits``.
        proposals: All proposals that the student sampled, for every image first its positives,
            then its negatives, ``(m_b, 4)``; two-stage students only. ``m`` is the sum of all
            ``m_b``.
        proposal_positives: Which of these are positives, ``(m,)`` bool.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    strides: tuple[int, ...]
    gt_boxes: list[Tensor]
    gt_labels: list[Tensor]
    student: DetectorOutputs
    teacher: Optional[DetectorOutputs] = None
    bank: Optional[PrototypeBank] = None
    progress: float = 0.0
    class_layers: Optional[nn.Module] = None
    boxes: Optional[list[Tensor]] = None
    labels: Optional[Tensor] = None
    objects: Optional[Tensor] = None
    roi_levels: Optional[Tensor] = None
    positions: Optional[Tensor] = None
    place_labels: Optional[Tensor] = None
    stages: list[Stage] = field(default_factory=list)
    proposals: Optional[list[Tensor]] = None
    proposal_positives: Optional[Tensor] = None


@dataclass
class Call:
    """Arguments and result of one recorded call."""

    args: tuple
    kwargs: dict
    result: Any


@contextmanager
def recorded(owner: object, name: str) -> Iterator[list[Call]]:
    """Record every call of the method ``owner.name`` while the context is open.

    This is how a step is observed without copying a line of MMDetection: the detector runs its own
    ``forward_train``, whatever its class makes of it, and the calls of interest are kept.

    Args:
        owner: The object whose method is observed; its class stays untouched.
        name: Name of the method.

    Yields:
        A list to which every call adds one :class:`Call`.

    Example:
        >>> class Adder:
        ...     def add(self, a, b):
        ...         return a + b
        >>> adder = Adder()
        >>> with recorded(adder, 'add') as calls:
        ...     _ = adder.add(1, b=2)
        >>> calls
        [Call(args=(1,), kwargs={'b': 2}, result=3)]
    """
    calls: list[Call] = []

    def record(method, *args, **kwargs):
        result = method(*args, **kwargs)
        calls.append(Call(args, kwargs, result))
        return result

    with watched(owner, name, record):
        yield calls
