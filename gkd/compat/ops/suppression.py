"""Non-maximum suppression: hard, soft, and with lists of what each kept box suppressed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression with mmcv's conventions.

    Args:
        boxes: ``(n, 4)`` as x1, y1, x2, y2 in pixels.
        scores: ``(n,)``.
        iou_threshold: Boxes that overlap a kept one by *more* than this are dropped.
        offset: 0, or 1 where a box's width is counted as ``x2 - x1 + 1``.

    Returns:
        Indices of the kept boxes, ``(k,)`` int64, highest score first.
    """
    boxes = boxes.float()
    if offset:
        # Width and height grow by one, of the boxes and of every intersection alike.
        boxes = boxes + boxes.new_tensor([0., 0., offset, offset])
    # mmcv compares in single precision; an IoU that equals the threshold must not suppress.
    threshold = float(np.float32(iou_threshold))
    return torch.ops.torchvision.nms(boxes, scores.float(), threshold)


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float,
            min_score: float, method: int, offset: int) -> Tensor:
    """Lower the scores of boxes that overlap a better one, instead of dropping them.

    Args:
        boxes: ``(n, 4)`` as x1, y1, x2, y2 in pixels, on the CPU as all arguments.
        scores: ``(n,)``.
        dets: ``(n, 5)``; its first ``k`` rows are written to: boxes with their lowered scores.
        iou_threshold: For ``NAIVE`` and ``LINEAR`` the overlap from which on a score is lowered.
        sigma: Width of ``GAUSSIAN``, which lowers every score by ``exp(-iou^2 / sigma)``.
        min_score: A box whose lowered score is below it is dropped.
        method: ``NAIVE`` lowers to 0, ``LINEAR`` by the factor ``1 - iou``, or ``GAUSSIAN``.
        offset: As for :func:`nms`.

    Returns:
        Indices of the kept boxes, ``(k,)`` int64, highest lowered score first.

    Source: Bodla et al., Soft-NMS, ICCV 2017.
    """
    corners = boxes.numpy().astype(np.float32)
    left = np.arange(len(corners))
    score = scores.numpy().astype(np.float32)
    kept = []
    while len(left):
        best = left[score[left].argmax()]
        dets[len(kept), :4] = boxes[best]
        dets[len(kept), 4] = float(score[best])
        kept.append(best)
        left = left[left != best]
        iou = _iou(corners[best], corners[left], offset)
        if method == GAUSSIAN:
            factor = np.exp(-iou ** 2 / sigma)
        else:
            factor = np.where(iou >= iou_threshold, 0 if method == NAIVE else 1 - iou, 1)
        score[left] *= factor.astype(np.float32)
        left = left[score[left] >= min_score]
    return torch.tensor(np.array(kept, dtype=np.int64))


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Suppress boxes, and list with each kept box those that it suppressed.

    Args:
        dets: ``(n, 5)`` as x1, y1, x2, y2, score, on the CPU.
        iou_threshold: Boxes that overlap a kept one by this or more are suppressed.

    Returns:
        One list of indices per kept box, highest score first: itself, then what it suppressed.
    """
    corners, score = dets[:, :4].numpy().astype(np.float32), dets[:, 4].numpy()
    left = np.argsort(-score, kind='stable')
    groups = []
    while len(left):
        best, left = left[0], left[1:]
        suppressed = _iou(corners[best], corners[left], 0) >= np.float32(iou_threshold)
        groups.append([int(best), *left[suppressed].tolist()])
        left = left[~suppressed]
    return groups


def _iou(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU ``(n,)`` of one box ``(4,)`` with others ``(n, 4)``."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + offset
    intersection = sides.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2] + offset).prod(axis=1)
    with np.errstate(invalid='ignore'):  # two points: 0 / 0 is no overlap
        return intersection / ((box[2:] - box[:2] + offset).prod() + areas - intersection)
