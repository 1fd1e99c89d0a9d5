"""Instances on FPN maps: their features, their levels, their masks.

Every function here works on all images and all levels of a pyramid at once: on a GPU the time of
so many small operations is the time that it takes to start them. The public functions are the
forms for a single level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.knowledge.precision import full_precision

# The images of a batch are filled up to a multiple of this many boxes: GPUs multiply matrices
# whose rows begin at such addresses faster.
MULTIPLE = 8


@dataclass(frozen=True)
class Instances:
    """The boxes of a batch, in one row and image by image.

    Images with fewer boxes than others are filled up with a box of no size at 0.

    Attributes:
        boxes: The boxes of all images, ``(n, 4)`` as ``x1, y1, x2, y2`` in pixels.
        padded: The same image by image, ``(B, N, 4)``.
        numbers: Which box stands where in ``padded``, ``(B, N)`` int64, counted from 1 over the
            batch; 0 for what fills an image up.
        rows: Where each box stands in ``padded.flatten(0, 1)``, ``(n,)`` int64.
    """

    boxes: Tensor
    padded: Tensor
    numbers: Tensor
    rows: Tensor

    @classmethod
    def of(cls, boxes: Sequence[Tensor]) -> Instances:
        """Arrange the boxes ``(n_b, 4)`` of every image.

        Example:
            >>> boxes = [torch.ones(1, 4), torch.ones(2, 4)]
            >>> Instances.of(boxes).numbers
            tensor([[1, 0, 0, 0, 0, 0, 0, 0],
                    [2, 3, 0, 0, 0, 0, 0, 0]])
        """
        counts = [len(image) for image in boxes]
        width = MULTIPLE * max(1, -(-max(counts) // MULTIPLE))
        numbers, rows = [], []
        for image, count in enumerate(counts):
            first = len(rows) + 1
            numbers += [*range(first, first + count), *[0] * (width - count)]
            rows += range(image * width, image * width + count)
        filled = torch.cat([boxes[0].new_zeros(1, 4), *boxes])
        places = on_device(numbers + rows, filled.device)
        numbers, rows = places.split([len(numbers), len(rows)])
        return cls(filled[1:], filled.index_select(0, numbers).unflatten(0, (-1, width)),
                   numbers.unflatten(0, (-1, width)), rows)

    def pad(self, values: Tensor) -> Tensor:
        """Arrange a value of every box, ``(n,)``, like ``padded``; fill up with 0."""
        return F.pad(values, (1, 0))[self.numbers]


def on_device(values: list, device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A tensor of numbers known to the host, without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


@full_precision
def pool_instances(
    feature: Tensor, boxes: Sequence[Tensor], scale: float | tuple[float, float]
) -> Tensor:
    """Mean feature of every box on one FPN level.

    A box covers the cells ``int(y1 * scale_y)..int(y2 * scale_y)`` by
    ``int(x1 * scale_x)..int(x2 * scale_x)``, both ends included, moved into the map where it
    leaves it, so that no window is empty.

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
    scale = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    instances = Instances.of(boxes)
    windows = mean_windows(instances, [feature.shape[2:]], [scale], feature.dtype)
    return pool_levels([feature], windows, instances)[0]


@torch.no_grad()
def mean_windows(instances: Instances, sizes: Sequence[tuple[int, int]],
                 scales: Sequence[tuple[float, float]], dtype: torch.dtype) -> Tensor:
    """What every column and every row of a map counts for in the mean of a box's cells.

    The mean over a rectangle is a mean over columns of means over rows, so a box needs a weight
    for each column and each row, not for each cell.

    Args:
        instances: The boxes.
        sizes: ``(H, W)`` of every level's map.
        scales: Cells per pixel of every level, ``(scale_x, scale_y)``.
        dtype: Of the weights.

    Returns:
        Tensor of shape ``(L, 2, B, longest side, N)``: columns, then rows.
    """
    boxes = instances.padded
    height, width = zip(*sizes)
    scale_x, scale_y = zip(*scales)
    limits = [[0] * len(sizes)] * 2, [[side - 1 for side in sides] for sides in (width, height)]
    scale, lowest, highest = on_device([[scale_x, scale_y], *limits], boxes.device,
                                       boxes.dtype)[..., None, None].transpose(1, 2)
    corners = boxes.permute(2, 0, 1).unflatten(0, (2, 2)).unsqueeze(1)
    # Clamping first and cutting the fraction off afterwards finds the same cells as int() would.
    first, last = torch.clamp(corners * scale, lowest, highest).long()
    last = torch.maximum(first, last)
    share = (last - first + 1).to(dtype).reciprocal()
    first, last, share = first.unsqueeze(-2), last.unsqueeze(-2), share.unsqueeze(-2)
    cells = torch.arange(max(height + width), device=boxes.device)[:, None]
    return ((cells >= first) & (cells <= last)) * share


@full_precision
def pool_levels(maps: Sequence[Tensor], windows: Tensor, instances: Instances) -> Tensor:
    """Mean features of all boxes on levels that have as many channels as each other.

    The columns of every box are a matrix product with the map as it lies in memory, with the
    channels' rows as rows of the matrix; then its rows are summed. Nothing of size boxes x
    channels x cells exists, in the backward pass neither.

    Args:
        maps: The levels' maps, float of shape ``(B, C, H_l, W_l)``.
        windows: The levels' weights (:func:`mean_windows`).
        instances: The boxes.

    Returns:
        Tensor of shape ``(L, n, C)``.
    """
    pooled = []
    for feature, (columns, rows) in zip(maps, windows):
        height, width = feature.shape[2:]
        strips = (feature.flatten(1, 2) @ columns[:, :width]).unflatten(1, (-1, height))
        pooled.append((strips * rows[:, None, :height]).sum(dim=2).mT)
    return torch.stack(pooled).flatten(1, 2).index_select(1, instances.rows)


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
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0) + 1
    level = torch.log2(sides.prod(dim=1).sqrt() / finest_scale + 1e-6)
    # From 0 on, cutting the fraction off is the same as floor.
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
    instances = Instances.of(boxes)
    # The other levels shrink to one cell, which is thrown away.
    sizes = [(1, 1)] * num_levels
    sizes[level] = size
    masks = draw_masks(instances, map_levels(instances.boxes, num_levels), torch.cat([*weights]),
                       sizes, [stride] * num_levels)
    return masks.split([height * width for height, width in sizes], dim=1)[level].unflatten(1, size)


@torch.no_grad()
def draw_masks(instances: Instances, levels: Tensor, weights: Tensor,
               sizes: Sequence[tuple[int, int]], strides: Sequence[float]) -> Tensor:
    """Draw the weight of every box on its own level, as :func:`instance_mask` does.

    Args:
        instances: The boxes.
        levels: Level of every box (:func:`map_levels`), ``(n,)``.
        weights: Weight of every box, not negative, ``(n,)``.
        sizes: ``(H, W)`` of every level's map.
        strides: Pixels per cell of every level.

    Returns:
        Float32 tensor of shape ``(B, sum H_l * W_l)``: every level's cells, row by row.
    """
    device, numbers = instances.padded.device, instances.numbers
    # What fills images up covers no cell and weighs nothing, so it may be drawn on any level.
    levels, weights = instances.pad(levels), F.pad(weights.float(), (1, 0))
    areas = [height * width for height, width in sizes]
    place = on_device([[width, height, sum(areas[:level])]
                       for level, (height, width) in enumerate(sizes)], device)[levels]
    size, width, offset = place[..., :2], place[..., 0], place[..., 2]
    cells = (instances.padded / on_device(strides, device, instances.padded.dtype)[levels, None])
    low, high = cells.long().split(2, dim=2)
    low, high = low.clamp(min=0), torch.minimum(high, size)
    narrow = (low == high).any(dim=2)

    # Every cell learns the number of the last box that covers it, 0 where none does; a narrow box
    # covers none. Small integers, as this is of size boxes x cells.
    small = torch.int16 if len(weights) < 2**15 else torch.int32
    line = torch.arange(max(max(size) for size in sizes), device=device)
    columns, rows = ((line >= low[..., None]) & (line < high[..., None])).unbind(dim=2)
    on_level = levels == torch.arange(len(sizes), device=device)[:, None, None]
    numbered_rows = (on_level * numbers).to(small)[..., None] * rows
    last = torch.cat([
        (level_rows[..., :height, None] * columns[..., None, :width]).amax(dim=1).flatten(1)
        for level_rows, (height, width) in zip(numbered_rows, sizes)], dim=1).long()
    mask = weights[last]

    # A narrow box counts where no later box has been written over it.
    x, y = torch.minimum(low, size - 1).unbind(dim=2)
    cell = torch.addcmul(offset + x, y, width)
    visible = narrow & (numbers > last.gather(1, cell))
    return mask.scatter_reduce(1, cell, weights[numbers] * visible, 'amax')
