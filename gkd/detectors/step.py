"""What one training step saw of a detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Optional

from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What kinds of knowledge want to see of a step, besides maps and boxes.

    Attributes:
        logits: Class logits at the student's positives.
        proposals: Class logits at all proposals that a two-stage student sampled.
        dense: What the dense heads predict at all anchors.
    """

    logits: bool = False
    proposals: bool = False
    dense: bool = False


@dataclass
class DensePredictions:
    """What a dense head predicted at all ``N`` places: a one-stage head, or a two-stage's RPN.

    Places are numbered over paired levels (finest first), rows, columns and the anchors of a cell,
    in this order.

    Attributes:
        logits: Class logits ``(B, N, num_logits)``; an RPN has a single one, object or not.
        counts: Places on every paired level; they sum to ``N``.
        anchors: Anchors ``(N, 4)`` as ``x1, y1, x2, y2`` in pixels; None for a head without.
        boxes: Predicted boxes ``(B, N, 4)`` in pixels, without gradient; None if the head does not
            regress offsets of anchors.
        deltas: Offsets as predicted ``(B, N, 4)``; None likewise.
        positives: Whether the student trains a place as an object, ``(B, N)`` bool; None for an
            RPN or a head without anchors.
    """

    logits: Tensor
    counts: tuple[int, ...]
    anchors: Optional[Tensor] = None
    boxes: Optional[Tensor] = None
    deltas: Optional[Tensor] = None
    positives: Optional[Tensor] = None


@dataclass
class StepRecord:
    """What student or teacher computed in a training step, on the levels that both have.

    The student's record is taken from the very forward pass that gives its detection losses; the
    teacher's holds the same boxes and labels with the teacher's maps and logits. Kinds of
    knowledge read records and nothing else.

    Attributes:
        maps: FPN maps ``(B, C, H_l, W_l)``, one a paired level, finest first.
        strides: Stride of every paired level, in pixels.
        gt_boxes: Ground-truth boxes of every image, ``(g_b, 4)`` as ``x1, y1, x2, y2`` in pixels.
        gt_labels: Class of every ground-truth box, ``(g_b,)``, int64.
        boxes: Positive proposals (two-stage) or anchors (one-stage) of every image, ``(n_b, 4)``;
            None for a detector that samples neither. ``n`` is the sum of all ``n_b``.
        labels: Class of the ground truth that each positive was assigned to, ``(n,)``, int64.
        logits: Class logits at the positives, ``(n, num_logits)``; None if not computed.
        roi_features: RoI-pooled features of the positives, ``(n, C, h, w)``; two-stage only.
        roi_levels: Paired level that each positive was RoI-pooled from, ``(n,)``; two-stage
            students only.
        positions: Where each positive is among all anchors of the student, ``(n, 2)`` int64 as
            image and anchor; one-stage only.
        objects: Ground truth that each positive was assigned to, ``(n,)`` int64, counted over
            the batch: an index into ``torch.cat(gt_boxes)``.
        proposals: All proposals that the student sampled, of every image its positives first, then
            its negatives, ``(m_b, 4)``; two-stage only. ``m`` is the sum of all ``m_b``.
        proposal_logits: Class logits at these, ``(m, num_logits)``; the teacher's only if a kind
            of knowledge ``needs_proposals``.
        proposal_positives: Which of these are positives, ``(m,)`` bool.
        dense: Predictions at all anchors; only if a kind of knowledge ``needs_dense``.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    gt_boxes: list[Tensor]
    gt_labels: list[Tensor]
    boxes: Optional[list[Tensor]] = None
    labels: Optional[Tensor] = None
    logits: Optional[Tensor] = None
    roi_features: Optional[Tensor] = None
    roi_levels: Optional[Tensor] = None
    positions: Optional[Tensor] = None
    objects: Optional[Tensor] = None
    proposals: Optional[list[Tensor]] = None
    proposal_logits: Optional[Tensor] = None
    proposal_positives: Optional[Tensor] = None
    dense: Optional[DensePredictions] = None


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
        A list that grows by one :class:`Call` a call.

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
    method: Callable = getattr(owner, name)
    calls: list[Call] = []

    def record(*args, **kwargs):
        result = method(*args, **kwargs)
        calls.append(Call(args, kwargs, result))
        return result

    outer = vars(owner).get(name)
    setattr(owner, name, record)
    try:
        yield calls
    finally:
        if outer is None:
            delattr(owner, name)
        else:
            setattr(owner, name, outer)
