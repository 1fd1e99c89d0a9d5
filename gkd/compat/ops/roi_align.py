"""RoIAlign: the average or the maximum of the samples of every bin, on torchvision's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.compat.ops.bins import groups, samples_of_bins
from gkd.compat.ops.precision import kernel_dtype

MAXIMUM = 0


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor,
                      argmax_x: Tensor, aligned_height: int, aligned_width: int,
                      spatial_scale: float, sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """Pool every RoI of ``input`` ``(n, c, h, w)`` into ``output``, in place.

    Args:
        rois: ``(k, 5)`` as image index, x1, y1, x2, y2 in pixels of the image.
        output: ``(k, c, aligned_height, aligned_width)``, written to.
        argmax_y: Like ``output``, written to where ``pool_mode`` is 0: row of the largest sample.
        argmax_x: Likewise, its column.
        pool_mode: 1 for the average of a bin's samples, 0 for their maximum.
    """
    dtype = kernel_dtype(input, rois)
    features, rois = input.to(dtype), rois.to(dtype)
    if pool_mode == MAXIMUM:
        pooled, y, x = _largest_samples(features, rois, (aligned_height, aligned_width),
                                        spatial_scale, sampling_ratio, aligned)
        argmax_y.copy_(y)
        argmax_x.copy_(x)
    else:
        pooled = torch.ops.torchvision.roi_align(
            features, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    output.copy_(pooled)


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                       grad_input: Tensor, aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int, pool_mode: int,
                       aligned: bool) -> None:
    """Write the gradient of :func:`roi_align_forward` to ``grad_input`` ``(n, c, h, w)``."""
    dtype = kernel_dtype(grad_output, rois)
    if pool_mode == MAXIMUM:
        grad_input.copy_(_spread(grad_output.to(dtype), rois[:, 0].long(), argmax_y, argmax_x,
                                 grad_input.shape))
    else:
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width,
            *grad_input.shape, sampling_ratio, aligned))


def _largest_samples(features: Tensor, rois: Tensor, bins: tuple[int, int], spatial_scale: float,
                     sampling_ratio: int, aligned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Largest sample of every bin with its row and column on the map, each ``(k, c, *bins)``."""
    pooled = features.new_zeros(len(rois), features.shape[1], *bins)
    rows, columns = torch.zeros_like(pooled), torch.zeros_like(pooled)
    shift, smallest = (0.5, 0.0) if aligned else (0.0, 1.0)
    samples = samples_of_bins(rois, bins, spatial_scale, sampling_ratio, at_least=smallest)
    for chosen, down, across in groups(samples):
        # With bins as fine as the samples and one sample each, the bins are the samples.
        fine = (bins[0] * down, bins[1] * across)
        values = torch.ops.torchvision.roi_align(features, rois[chosen], spatial_scale, *fine, 1,
                                                 aligned)
        largest, index = F.max_pool2d(values, (down, across), return_indices=True)
        corners = rois[chosen, 1:, None, None, None] * spatial_scale - shift
        x1, y1, x2, y2 = corners.unbind(dim=1)
        pooled[chosen] = largest
        rows[chosen] = y1 + (index // fine[1] + 0.5) * (y2 - y1).clamp(min=smallest) / fine[0]
        columns[chosen] = x1 + (index % fine[1] + 0.5) * (x2 - x1).clamp(min=smallest) / fine[1]
    return pooled, rows, columns


def _spread(gradient: Tensor, image: Tensor, rows: Tensor, columns: Tensor,
            shape: torch.Size) -> Tensor:
    """Add each gradient ``(k, c, h', w')`` to the four cells around its place on the map."""
    _, channels, height, width = shape
    inside = (rows >= -1) & (rows <= height) & (columns >= -1) & (columns <= width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    top, left = rows.floor().long(), columns.floor().long()
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = rows - top, columns - left
    plane = image[:, None] * channels + torch.arange(channels, device=image.device)
    plane = plane[..., None, None]
    spread = gradient.new_zeros(shape).flatten()
    for row, column, weight in ((top, left, (1 - down) * (1 - across)),
                                (top, right, (1 - down) * across),
                                (below, left, down * (1 - across)),
                                (below, right, down * across)):
        cell = (plane * height + row) * width + column
        part = (gradient * weight * inside).to(spread.dtype)
        spread.index_add_(0, cell.flatten(), part.flatten())
    return spread.view(shape)
