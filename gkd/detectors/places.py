"""The places that a dense head without sampling trains as objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

import torch
from torch import Tensor, nn

from gkd.detectors.step import Call, recorded

# Methods that assign the targets of a batch; the second is SABL's in MMDetection 2.
OF_ALL_IMAGES = ('get_targets', 'get_target')
# The methods of YOLOX's head for one image, in MMDetection 2 and 3.
OF_ONE_IMAGE = ('_get_target_single', '_get_targets_single')


@contextmanager
def recorded_targets(head: nn.Module) -> Iterator[list[Call]]:
    """Record how a head assigns targets to its places while the context is open.

    Args:
        head: A dense head, built by MMDetection.

    Yields:
        Calls of the method that serves all images. If the head has none: calls of the method that
        assigns the targets of one image. The list stays empty if the head has neither.
    """
    name = next((name for name in OF_ALL_IMAGES + OF_ONE_IMAGE if hasattr(head, name)), None)
    if name is None:
        yield []
        return
    with recorded(head, name) as calls:
        yield calls


def place_labels(calls: list[Call], scores: Sequence[Tensor],
                 num_classes: int) -> Optional[Tensor]:
    """Class that every place was trained as.

    Args:
        calls: From :func:`recorded_targets`.
        scores: Class scores of every level, ``(B, C, H_l, W_l)``: one place per cell.
        num_classes: ``C``, which stands for background.

    Returns:
        ``(B, N)`` int64, places numbered over levels, rows and columns; None if the calls do not
        tell.
    """
    images, cells = len(scores[0]), [level.shape[-2:].numel() for level in scores]
    if not calls or not isinstance(calls[-1].result, tuple):
        return None
    if torch.is_tensor(calls[-1].result[0]) and calls[-1].result[0].dtype == torch.bool:
        masks, classes = zip(*(call.result[:2] for call in calls[-images:]))
        if [len(mask) for mask in masks] != [sum(cells)] * images:
            return None
        return torch.stack([labels_of_mask(*both, num_classes) for both in zip(masks, classes)])
    # If a head assigns twice (RepPoints), the last call counts. Labels come first, or after the
    # anchors (RTMDet).
    found = (labels_of_levels(part, images, cells) for part in calls[-1].result)
    return next((labels for labels in found if labels is not None), None)


def labels_of_levels(labels: object, images: int, cells: Sequence[int]) -> Optional[Tensor]:
    """Classes of all places in one tensor.

    Args:
        labels: A part of what a head assigns: ``(B * N,)``, or a tensor of every level.
        images: ``B``.
        cells: Places of every level; ``N`` in all.

    Returns:
        ``(B, N)`` int64; None if ``labels`` are no class of every place.
    """
    counts = [images * count for count in cells]
    if torch.is_tensor(labels):
        if labels.numel() != sum(counts):
            return None
        labels = labels.flatten().split(counts)
    if not isinstance(labels, (list, tuple)) or not all(map(torch.is_tensor, labels)):
        return None
    if [level.numel() for level in labels] != counts or labels[0].dtype != torch.long:
        return None
    return torch.cat([level.reshape(images, -1) for level in labels], dim=1)


def labels_of_mask(mask: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Classes of one image's places, from the targets of a head like YOLOX's.

    Args:
        mask: Which places are objects, ``(N,)`` bool.
        targets: ``C`` numbers for each of these; only that of its class is not 0, ``(n, C)``.
        num_classes: ``C``.

    Example:
        >>> targets = torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.0, 0.0]])  # the second box is missed
        >>> labels_of_mask(torch.tensor([False, True, True]), targets, num_classes=3)
        tensor([3, 1, 3])
    """
    confidence, classes = targets.max(dim=1)
    classes = torch.where(confidence > 0, classes, num_classes)
    return torch.full_like(mask, num_classes, dtype=torch.long).masked_scatter(mask, classes)


def centres(sizes: Sequence[tuple[int, int]], strides: Sequence[int],
            device: torch.device) -> Tensor:
    """Centre of every cell in pixels, ``(N, 2)`` as x, y, over levels, rows and columns.

    Example:
        >>> centres([(1, 2)], [8], torch.device('cpu'))
        tensor([[ 4.,  4.],
                [12.,  4.]])
    """
    levels = []
    for (height, width), stride in zip(sizes, strides):
        rows, columns = (torch.arange(count, device=device, dtype=torch.float)
                         for count in (height, width))
        grid = torch.meshgrid(rows, columns, indexing='ij')
        levels.append((torch.stack(grid[::-1], dim=-1).flatten(0, 1) + 0.5) * stride)
    return torch.cat(levels)


def smallest_object(labels: Tensor, points: Tensor, boxes: Tensor,
                    classes: Tensor) -> tuple[Tensor, Tensor]:
    """Find for every place the smallest box of its class that contains it.

    Args:
        labels: Class of every place, ``(B, N)``.
        points: Centre of every place, ``(N, 2)`` as x, y in pixels.
        boxes: Ground truth of every image, ``(B, G, 4)`` in pixels; those that fill up an image
            have no size, and so hold no place.
        classes: Class of every box, ``(B, G)``.

    Returns:
        The box's number in the image, ``(B, N)`` int64, and whether there is one, ``(B, N)`` bool.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0, 90, 90], [0, 0, 9, 9]]])
        >>> smallest_object(torch.tensor([[1, 1]]), torch.tensor([[4.0, 4], [50, 50]]), boxes,
        ...                 torch.tensor([[1, 1]]))
        (tensor([[1, 0]]), tensor([[True, True]]))
    """
    low, high = boxes[:, None].split(2, dim=-1)
    inside = ((points[None, :, None] >= low) & (points[None, :, None] <= high)).all(dim=-1)
    holds = inside & (labels[..., None] == classes[:, None])
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    return torch.where(holds, areas[:, None], torch.inf).argmin(dim=-1), holds.any(dim=-1)
