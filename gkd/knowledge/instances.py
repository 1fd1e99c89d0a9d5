"""Instances on FPN maps: their features, their levels, their masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gkd.knowledge.precision import full_precision


@full_precision
def pool_instances(
    feature: Tensor, boxes: Sequence[Tensor], scale: float | tuple[float, float]
) -> Tensor:
    """Mean feature of every box on one FPN level.

    A box covers the cells ``int(y1 * scale_y)..int(y2 * scale_y)`` by
    ``int(x1 * scale_x)..int(x2 * scale_x)``, both ends included, moved into the map where it
    leaves it, so that no window is empty. Which cell belongs to which box is one matrix an image,
    and pooling is its product with the map: nothing of size boxes x channels x cells exists, in
    the backward pass neither. Images with fewer boxes than others are filled up, for one product.

    Source: method sections 1.1 and 2.1.

    Args:
        feature: the level's map, float of shape ``(B, C, H, W)``.
        boxes: per image the boxes ``x1, y1, x2, y2`` in pixels of the padded image, float of
            shape ``(n_b, 4)``.
        scale: cells per pixel, one number or ``(scale_x, scale_y)``.

    Returns:
        Tensor of shape ``(sum n_b, C)``, images in order; float32, or float64 for a float64 map.

    Raises:
        ValueError: if the number of images differs between ``feature`` and ``boxes``.

    Example:
        >>> feature = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pool_instances(feature, [torch.tensor([[0.0, 0.0, 15.0, 7.0]])], scale=1 / 8)
        tensor([[0.5000]])
    """
    if len(boxes) != len(feature):
        raise ValueError(f'feature holds {len(feature)} images, boxes {len(boxes)}')
    scale_x, scale_y = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    height, width = feature.shape[2:]
    x1, y1, x2, y2 = pad_sequence(boxes, batch_first=True).unbind(dim=2)
    rows = _mean_over_cells(y1 * scale_y, y2 * scale_y, height).to(feature.dtype)
    columns = _mean_over_cells(x1 * scale_x, x2 * scale_x, width).to(feature.dtype)
    windows = (rows[:, :, :, None] * columns[:, :, None, :]).flatten(2)
    # The map on the left: its gradient then comes out in the map's own memory order.
    pooled = (feature.flatten(2) @ windows.mT).mT
    return torch.cat([image[: len(own)] for image, own in zip(pooled, boxes)])


def _mean_over_cells(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Weights ``(B, n, size)`` of the mean over ``int(low)..int(high)``, moved into the map."""
    cells = torch.arange(size, device=low.device)
    # Clamping first and cutting the fraction off afterwards finds the same cells as int() would.
    first = low.clamp(0, size - 1).long()
    last = torch.maximum(high.clamp(0, size - 1).long(), first)
    inside = (cells >= first[..., None]) & (cells <= last[..., None])
    return inside / inside.sum(dim=-1, keepdim=True)


@full_precision
def map_levels(boxes: Tensor, num_levels: int, finest_scale: float = 56) -> Tensor:
    """FPN level that a box of its size belongs to.

    ``floor(log2(sqrt((w + 1) * (h + 1)) / finest_scale + 1e-6))``, clamped to the levels there
    are.

    Source: method section 2.4.

    Args:
        boxes: ``x1, y1, x2, y2`` in pixels, float of shape ``(n, 4)``.
        num_levels: number of FPN levels.
        finest_scale: boxes of up to twice this side length, in pixels, belong to level 0.

    Returns:
        LongTensor of shape ``(n,)``.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 55.0, 55.0], [0.0, 0.0, 111.0, 111.0]])
        >>> map_levels(boxes, num_levels=5)
        tensor([0, 1])
    """
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    side = torch.sqrt(((x2 - x1).clamp(min=0) + 1) * ((y2 - y1).clamp(min=0) + 1))
    level = torch.floor(torch.log2(side / finest_scale + 1e-6))
    return level.clamp(0, num_levels - 1).long()


@torch.no_grad()
def instance_mask(
    boxes: Sequence[Tensor],
    weights: Sequence[Tensor],
    level: int,
    num_levels: int,
    stride: float,
    size: tuple[int, int],
) -> Tensor:
    """Map of the weights of the boxes that belong to one FPN level.

    A box writes its weight into the cells ``int(y1 / stride)..int(y2 / stride) - 1`` by
    ``int(x1 / stride)..int(x2 / stride) - 1``, clipped to the map, later boxes over earlier
    ones. A box narrower than one cell on an axis writes only the cell
    ``(int(y1 / stride), int(x1 / stride))``, where the larger value stays. Cells of no box are 0.

    Source: method section 2.4.

    Args:
        boxes: per image the boxes ``x1, y1, x2, y2`` in pixels of the padded image, float of
            shape ``(n_b, 4)``.
        weights: per image the boxes' weights, not negative, float of shape ``(n_b,)``.
        level: the FPN level to draw; boxes of other levels (:func:`map_levels`) write nothing.
        num_levels: number of FPN levels.
        stride: pixels per cell of this level.
        size: ``(H, W)`` of the level's map.

    Returns:
        Float32 tensor of shape ``(B, H, W)``, without gradient.

    Raises:
        ValueError: if the number of images differs between ``boxes`` and ``weights``.

    Example:
        >>> boxes = [torch.tensor([[0.0, 0.0, 16.0, 8.0], [9.0, 0.0, 30.0, 20.0]])]
        >>> instance_mask(boxes, [torch.tensor([0.5, 1.0])], 0, 5, stride=8, size=(2, 4))
        tensor([[[0.5000, 1.0000, 1.0000, 0.0000],
                 [0.0000, 1.0000, 1.0000, 0.0000]]])
    """
    if len(boxes) != len(weights):
        raise ValueError(f'boxes holds {len(boxes)} images, weights {len(weights)}')
    padded = pad_sequence(boxes, batch_first=True)
    drawn = map_levels(padded.flatten(0, 1), num_levels).unflatten(0, padded.shape[:2]) == level
    # What fills an image up has weight 0 and covers no cell, so it draws nothing.
    return _draw(padded / stride, pad_sequence(weights, batch_first=True).float(), drawn, size)


def _draw(boxes: Tensor, weights: Tensor, drawn: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw the boxes ``(B, n, 4)``, in units of cells, in their order; ``(B, H, W)``."""
    height, width = size
    images, count = weights.shape
    if count == 0:
        return weights.new_zeros(images, height, width)
    x1, y1, x2, y2 = boxes.long().unbind(dim=2)
    x1, y1 = x1.clamp(min=0), y1.clamp(min=0)
    x2, y2 = x2.clamp(max=width), y2.clamp(max=height)
    narrow = (x1 == x2) | (y1 == y2)

    # Numbers from 1 on stand for the order of writing: every cell learns the number of the last
    # box that covers it, 0 where none does; a narrow box covers none. Small integers, as this is
    # of size boxes x cells.
    small = torch.int16 if count < 2**15 else torch.int32
    number = torch.arange(1, count + 1, device=boxes.device)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns = (x >= x1[..., None]) & (x < x2[..., None])
    rows = (y >= y1[..., None]) & (y < y2[..., None]) & drawn[..., None]
    numbered_rows = (rows * number[:, None]).to(small)
    last = (numbered_rows[..., None] * columns.to(small)[..., None, :]).amax(dim=1)
    last = last.flatten(1).long()
    mask = torch.cat([weights.new_zeros(images, 1), weights], dim=1).gather(1, last)

    # A narrow box counts where no later box has been written over it.
    cell = y1.clamp(max=height - 1) * width + x1.clamp(max=width - 1)
    visible = narrow & drawn & (number > last.gather(1, cell))
    mask = mask.scatter_reduce(1, cell, weights * visible, 'amax')
    return mask.unflatten(1, size)
