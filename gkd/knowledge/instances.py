"""Instances on FPN maps: their features, their levels, their masks.

The functions here work on all images and all levels of a pyramid at once: on a GPU, launching so
many small operations takes longer than computing them. The public functions are the variants for a
single level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.device import on_device
from gkd.knowledge.precision import full_precision

# GPUs multiply matrices faster if the length of their rows is a multiple of this.
MULTIPLE = 8


@dataclass(frozen=True)
class Instances:
    """The boxes of a batch, as one list and image by image.

    Images with fewer boxes than others are filled up with boxes of size 0 at the origin.

    Attributes:
        boxes: The boxes of all images, ``(n, 4)`` as ``x1, y1, x2, y2`` in pixels.
        padded: The same boxes image by image, filled up, ``(B, N, 4)``.
        numbers: Number of the box at each position of ``padded``, ``(B, N)`` int64, counted from 1
            over the batch; 0 for a box that fills an image up.
        rows: Position of each box in ``padded.flatten(0, 1)``, ``(n,)`` int64.
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
        width = rounded_up(max(1, *counts))
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


def rounded_up(count: int) -> int:
    """The next multiple of :data:`MULTIPLE`."""
    return -(-count // MULTIPLE) * MULTIPLE


@full_precision
def pool_instances(
    feature: Tensor, boxes: Sequence[Tensor], scale: float | tuple[float, float]
) -> Tensor:
    """Mean feature of every box on one FPN level.

    A box covers the cells ``int(y1 * scale_y)..int(y2 * scale_y)`` by
    ``int(x1 * scale_x)..int(x2 * scale_x)``, both ends included. Indices beyond the map are
    clamped to it, so that no window is empty.

    Source: method sections 1.1 and 2.1.

    Args:
        feature: The level's map, float of shape ``(B, C, H, W)``.
        boxes: Per image the boxes ``x1, y1, x2, y2`` in pixels of the padded image, float of
            shape ``(n_b, 4)``.
        scale: Cells per pixel, one number or ``(scale_x, scale_y)``.

    Returns:
        Tensor of shape ``(sum n_b, C)``, images in order; float32, or float64 for a float64 map.

    Raises:
        ValueError: The number of images differs between ``feature`` and ``boxes``.

    Example:
        >>> feature = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pool_instances(feature, [torch.tensor([[0.0, 0.0, 15.0, 7.0]])], scale=1 / 8)
        tensor([[0.5000]])
    """
    if len(boxes) != len(feature):
        raise ValueError(f'feature holds {len(feature)} images, boxes {len(boxes)}')
    scale = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    instances = Instances.of(boxes)
    windows = mean_windows(instances, [feature.shape[2:]], [scale])
    return pool_maps([feature], windows, instances)[0]


@torch.no_grad()
def mean_windows(instances: Instances, sizes: Sequence[tuple[int, int]],
                 scales: Sequence[tuple[float, float]]) -> Tensor:
    """Weight of every column and every row of a map in the mean over a box's cells.

    The mean over a rectangle is a mean over columns of means over rows, so a box needs a weight
    for each column and each row, not for each cell.

    Args:
        instances: The boxes.
        sizes: ``(H, W)`` of every level's map.
        scales: Cells per pixel of every level, ``(scale_x, scale_y)``.

    Returns:
        Float32 tensor of shape ``(L, 2, B, N, S)``: columns, then rows; ``S`` is the longest side
        or a little more.
    """
    boxes = instances.padded
    sides = list(zip(*((width, height) for height, width in sizes)))
    limits = [[[side - 1 for side in axis] for axis in sides], [[0] * len(sizes)] * 2]
    scale, highest, lowest = on_device([[*zip(*scales)], *limits], boxes.device,
                                       boxes.dtype)[..., None, None].transpose(1, 2)
    corners = boxes.permute(2, 0, 1).unflatten(0, (2, 2)).unsqueeze(1)
    # Clamping first and cutting the fraction off afterwards finds the same cells as int() would.
    first, last = torch.clamp(corners * scale, lowest, highest).long().unsqueeze(-1)
    last = torch.maximum(first, last)
    cells = torch.arange(rounded_up(max(map(max, sizes))), device=boxes.device)
    covered = (cells >= first) & (cells <= last)
    return covered / covered.sum(dim=-1, keepdim=True)


@full_precision
def pool_maps(maps: Sequence[Tensor], windows: Tensor, instances: Instances) -> Tensor:
    """Mean features of all boxes on levels with equal numbers of channels.

    Args:
        maps: The levels' maps, float of shape ``(B, C, H_l, W_l)``.
        windows: The levels' weights (:func:`mean_windows`).
        instances: The boxes.

    Returns:
        Tensor of shape ``(L, n, C)``.
    """
    pooled = torch.stack([WindowMean.apply(feature, *level)
                          for feature, level in zip(maps, windows.to(maps[0].dtype))])
    return pooled.flatten(1, 2).index_select(1, instances.rows)


class WindowMean(torch.autograd.Function):
    """Sums of a map over windows, as two matrix products that are large in both directions.

    The first product, with the map as it lies in memory, sums over one side of every box, and the
    second over the other: first the columns, or the rows if channels come last. The largest tensor
    has boxes x channels x rows (or columns) numbers, in the backward pass too. The backward pass
    is written out here because autograd would transpose the gradient in memory.
    """

    @staticmethod
    def forward(ctx, feature: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        """Sum a map ``(B, C, H, W)`` over windows ``(B, N, S)`` each: ``(B, N, C)``."""
        images, channels, height, width = ctx.size = feature.shape
        ctx.channels_last = not feature.is_contiguous() and feature.is_contiguous(
            memory_format=torch.channels_last)
        columns, rows = columns[..., :width], rows[..., :height]
        if ctx.channels_last:
            columns = columns.flatten(0, 1).unsqueeze(1)
            strips = rows @ feature.movedim(1, -1).flatten(2)
            sums = columns @ strips.view(len(columns), width, channels)
        else:
            rows = rows.flatten(0, 1).unsqueeze(2)
            strips = columns @ feature.flatten(1, 2).mT
            sums = strips.view(len(rows), channels, height) @ rows
        ctx.save_for_backward(columns, rows)
        return sums.view(images, -1, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the map, with its layout."""
        columns, rows = ctx.saved_tensors
        images, channels, height, width = ctx.size
        gradient = gradient.flatten(0, 1)
        if ctx.channels_last:
            strips = (columns.mT * gradient[:, None]).view(images, -1, width * channels)
            change = (rows.mT @ strips).view(images, height, width, channels).movedim(-1, 1)
        else:
            strips = (gradient[..., None] * rows.mT).view(images, -1, channels * height)
            change = (strips.mT @ columns).view(ctx.size)
        return change, None, None


@full_precision
def map_levels(boxes: Tensor, num_levels: int, finest_scale: float = 56) -> Tensor:
    """FPN level that a box belongs to by its size.

    It is ``floor(log2(sqrt((w + 1) * (h + 1)) / finest_scale + 1e-6))``, clamped to the existing
    levels.

    Source: method section 2.4.

    Args:
        boxes: ``x1, y1, x2, y2`` in pixels, float of shape ``(n, 4)``.
        num_levels: Number of FPN levels.
        finest_scale: Boxes of up to twice this side length, in pixels, belong to level 0.

    Returns:
        LongTensor of shape ``(n,)``.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 55.0, 55.0], [0.0, 0.0, 111.0, 111.0]])
        >>> map_levels(boxes, num_levels=5)
        tensor([0, 1])
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0) + 1
    # From these areas on, the logarithm reaches 1, 2, ... Comparing takes one operation.
    areas = on_device([((2**level - 1e-6) * finest_scale)**2 for level in range(1, num_levels)],
                      boxes.device, boxes.dtype)
    return torch.bucketize(sides.prod(dim=1), areas, right=True)


@torch.no_grad()
def instance_mask(
    boxes: Sequence[Tensor],
    weights: Sequence[Tensor],
    level: int,
    num_levels: int,
    stride: float,
    size: tuple[int, int],
) -> Tensor:
    """Map with the weights of the boxes that belong to one FPN level.

    A box writes its weight into the cells ``int(y1 / stride)..int(y2 / stride) - 1`` by
    ``int(x1 / stride)..int(x2 / stride) - 1``, clipped to the map. Later boxes overwrite earlier
    ones. A box narrower than one cell on an axis writes only the cell
    ``(int(y1 / stride), int(x1 / stride))``, where the larger value stays. Cells outside all boxes
    are 0.

    Source: method section 2.4.

    Args:
        boxes: Per image the boxes ``x1, y1, x2, y2`` in pixels of the padded image, float of
            shape ``(n_b, 4)``.
        weights: Per image the boxes' weights, not negative, float of shape ``(n_b,)``.
        level: The FPN level to draw; boxes of other levels (:func:`map_levels`) write nothing.
        num_levels: Number of FPN levels.
        stride: Pixels per cell of this level.
        size: ``(H, W)`` of the level's map.

    Returns:
        Float32 tensor of shape ``(B, H, W)``, without gradient.

    Raises:
        ValueError: The number of images differs between ``boxes`` and ``weights``.

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
    return draw_masks(instances, map_levels(instances.boxes, num_levels), torch.cat([*weights]),
                      sizes, [stride] * num_levels)[level]


@torch.no_grad()
def draw_masks(instances: Instances, levels: Tensor, weights: Tensor,
               sizes: Sequence[tuple[int, int]], strides: Sequence[float]) -> list[Tensor]:
    """Draw the weight of every box on its own level, as :func:`instance_mask` does.

    All levels are drawn on one sheet: the finest on top, below it the others side by side.

    Args:
        instances: The boxes.
        levels: Level of every box (:func:`map_levels`), ``(n,)``.
        weights: Weight of every box, not negative, ``(n,)``.
        sizes: ``(H, W)`` of every level's map.
        strides: Pixels per cell of every level.

    Returns:
        Per level a float32 tensor of shape ``(B, H, W)``.
    """
    device, numbers = instances.padded.device, instances.numbers
    # Boxes that fill up images cover no cell and weigh nothing; any level may draw them.
    levels, weights = instances.pad(levels), F.pad(weights.float(), (1, 0))
    lefts = accumulate((width for _, width in sizes[1:]), initial=0)
    corners = [(0, 0), *((left, sizes[0][0]) for left, _ in zip(lefts, sizes[1:]))]
    sheet_width, sheet_height = (max(corner[axis] + size[1 - axis]
                                     for corner, size in zip(corners, sizes)) for axis in (0, 1))
    far = 2**30
    limits = [[far, far, width, height] for height, width in sizes]
    places = on_device([[*limit, *corner * 2, limit[2] - 1, limit[3] - 1]
                        for limit, corner in zip(limits, corners)], device)[levels]
    limit, shift, inner = places.split([4, 4, 2], dim=2)
    cells = (instances.padded / on_device(strides, device, instances.padded.dtype)[levels, None])
    cells = torch.clamp(cells.long(), on_device([0, 0, -far, -far], device), limit)
    x, y = (torch.minimum(cells[..., :2], inner) + shift[..., :2]).unbind(dim=2)
    low, high = (cells + shift).unsqueeze(-1).split(2, dim=2)
    narrow = (low == high).any(dim=2).squeeze(-1)

    # Find for every cell the number of the last box that covers it, 0 if none does; a narrow box
    # covers none. Small integers save memory: there are boxes x cells numbers.
    small = torch.int16 if len(weights) < 2**15 else torch.int32
    line = torch.arange(max(sheet_width, sheet_height), device=device)
    columns, rows = ((line >= low) & (line < high)).unbind(dim=2)
    numbered_rows = rows[..., :sheet_height, None] * numbers.to(small)[..., None, None]
    last = (numbered_rows * columns[..., None, :sheet_width]).amax(dim=1).flatten(1).long()
    sheet = weights[last]

    # A narrow box counts only where no later box covers it.
    cell = torch.add(x, y, alpha=sheet_width)
    visible = narrow & (numbers > last.gather(1, cell))
    sheet = sheet.scatter_reduce(1, cell, weights[numbers] * visible, 'amax')
    sheet = sheet.unflatten(1, (sheet_height, sheet_width))
    return [sheet[:, y:y + height, x:x + width]
            for (x, y), (height, width) in zip(corners, sizes)]
