"""The samples that RoI pooling takes in every bin: as many as a bin has cells."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def samples_of_bins(rois: Tensor, bins: tuple[int, int], spatial_scale: float,
                    sampling_ratio: int, at_least: float = 0.0) -> Tensor:
    """Samples ``(k, 2)`` down and across a bin of every RoI, at least one.

    Args:
        rois: ``(k, 5)`` as image index, x1, y1, x2, y2 in pixels of the image.
        bins: Bins of a RoI, down and across.
        spatial_scale: Cells of the map per pixel.
        sampling_ratio: Samples on each side; 0 for the number of cells that a bin is long.
        at_least: Smallest side of a RoI in cells.
    """
    if sampling_ratio > 0:
        return rois.new_full((len(rois), 2), sampling_ratio, dtype=torch.long)
    corners = rois[:, 1:] * spatial_scale
    sides = (corners[:, [3, 2]] - corners[:, [1, 0]]).clamp(min=at_least)
    return (sides / sides.new_tensor(bins)).ceil().clamp(min=1).long()


def groups(samples: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """RoIs with the same number of samples: their indices, samples down and across.

    Pooling them together needs no more memory than their samples take.
    """
    kinds, kind = samples.unique(dim=0, return_inverse=True)
    for index, (down, across) in enumerate(kinds.tolist()):
        yield (kind == index).nonzero().flatten(), down, across
