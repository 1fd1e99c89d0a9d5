"""RoI pooling: the maximum of the cells of every bin."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd.compat.ops.precision import kernel_dtype


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor,
                     pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
    """Take the largest cell of every bin of every RoI.

    torchvision's operator rounds a RoI to cells, mmcv's does not. So each bin becomes a RoI of its
    own, of whole cells, which rounding leaves as it is.

    Args:
        input: ``(n, c, h, w)``.
        rois: ``(k, 5)`` as image index, x1, y1, x2, y2 in pixels of the image, ends included.
        output: ``(k, c, pooled_height, pooled_width)``, written to; 0 for a bin without a cell.
        argmax: Alike, int32, written to: ``row * w + column`` of the largest cell; -1 for none.
        pooled_height: Bins down a RoI.
        pooled_width: Bins across a RoI.
        spatial_scale: Cells of the map per pixel.
    """
    height, width = input.shape[-2:]
    dtype = kernel_dtype(input)
    dtype = torch.float if dtype == torch.half else dtype  # half is exact only up to cell 2048
    x1, y1, x2, y2 = rois[:, 1:].to(dtype).unbind(dim=1)
    top, bottom = _bins(y1 * spatial_scale, (y2 + 1) * spatial_scale, pooled_height, height)
    left, right = _bins(x1 * spatial_scale, (x2 + 1) * spatial_scale, pooled_width, width)
    shape = (len(rois), pooled_height, pooled_width)
    bins = torch.stack([side.expand(shape) for side in (
        rois[:, 0, None, None].to(dtype), left[:, None], top[..., None], right[:, None] - 1,
        bottom[..., None] - 1)], dim=-1).flatten(0, 2)
    largest, index = torch.ops.torchvision.roi_pool(input.to(dtype), bins, 1.0, 1, 1)
    empty = ((right <= left)[:, None] | (bottom <= top)[..., None])[:, None]
    largest = largest.view(*shape, -1).permute(0, 3, 1, 2)
    index = index.view(*shape, -1).permute(0, 3, 1, 2)
    output.copy_(largest.masked_fill(empty, 0))
    argmax.copy_(index.masked_fill(empty, -1))


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor,
                      pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
    """Write the gradient of :func:`roi_pool_forward` to ``grad_input`` ``(n, c, h, w)``."""
    channels, height, width = grad_input.shape[1:]
    plane = rois[:, 0, None].long() * channels + torch.arange(channels, device=rois.device)
    cell = plane[..., None, None] * (height * width) + argmax.clamp(min=0)
    gradient = grad_output.masked_fill(argmax < 0, 0)
    grad_input.zero_().view(-1).index_add_(0, cell.flatten(), gradient.flatten())


def _bins(start: Tensor, end: Tensor, count: int, cells: int) -> tuple[Tensor, Tensor]:
    """First cell and end, each ``(k, count)``, of the bins of RoIs from ``start`` to ``end``."""
    number = torch.arange(count, device=start.device)
    size = ((end - start) / count)[:, None]
    first = (number * size + start[:, None]).floor().clamp(0, cells)
    last = ((number + 1) * size + start[:, None]).ceil().clamp(0, cells)
    return first, torch.where(size > 0, last, first)
