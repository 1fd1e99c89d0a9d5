"""Deformable RoI pooling: RoIAlign whose bins are moved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.compat.ops.bins import groups, samples_of_bins
from gkd.compat.ops.precision import kernel_dtype


def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor, output: Tensor,
                            pooled_height: int, pooled_width: int, spatial_scale: float,
                            sampling_ratio: int, gamma: float) -> None:
    """Average the samples of every bin of every RoI, each bin moved by its offset.

    Args:
        input: ``(n, c, h, w)``.
        rois: ``(k, 5)`` as image index, x1, y1, x2, y2 in pixels of the image.
        offset: ``(k, 2, pooled_height, pooled_width)``, across and down, in sides of the RoI
            times ``1 / gamma``; empty to move nothing.
        output: ``(k, c, pooled_height, pooled_width)``, written to.
        pooled_height: Bins down a RoI.
        pooled_width: Bins across a RoI.
        spatial_scale: Cells of the map per pixel.
        sampling_ratio: Samples on each side of a bin; 0 for the number of cells it is long.
        gamma: Factor of the offsets.

    Source: Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2.
    """
    dtype = _precise(input, rois)
    output.copy_(_pool(input.to(dtype), rois.to(dtype), offset.to(dtype),
                       (pooled_height, pooled_width), spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor,
                             grad_input: Tensor, grad_offset: Tensor, pooled_height: int,
                             pooled_width: int, spatial_scale: float, sampling_ratio: int,
                             gamma: float) -> None:
    """Write the gradients of input and offset of :func:`deform_roi_pool_forward`."""
    dtype = _precise(input, rois)
    with torch.enable_grad():
        features = input.detach().to(dtype).requires_grad_()
        moved = offset.detach().to(dtype).requires_grad_()
        pooled = _pool(features, rois.to(dtype), moved, (pooled_height, pooled_width),
                       spatial_scale, sampling_ratio, gamma)
        gradients = torch.autograd.grad(pooled, (features, moved), grad_output.to(dtype),
                                        allow_unused=True)
    for gradient, target in zip(gradients, (grad_input, grad_offset)):
        if gradient is not None:
            target.copy_(gradient)


def _pool(features: Tensor, rois: Tensor, offset: Tensor, bins: tuple[int, int],
          spatial_scale: float, sampling_ratio: int, gamma: float) -> Tensor:
    down, across = bins
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - 0.5)[..., None, None].unbind(dim=1)
    left = x1 + (x2 - x1) / across * torch.arange(across, device=rois.device)
    top = y1 + (y2 - y1) / down * torch.arange(down, device=rois.device)[:, None]
    if offset.numel():
        left = left + gamma * (x2 - x1) * offset[:, 0]
        top = top + gamma * (y2 - y1) * offset[:, 1]
    left, top = left.expand(-1, down, across), top.expand(-1, down, across)

    samples = samples_of_bins(rois, bins, spatial_scale, sampling_ratio)
    pooled = features.new_zeros(len(rois), features.shape[1], down, across)
    # grid_sample needs a call per image; a RoI is pooled from its own image only.
    for image in range(len(features)):
        own = (rois[:, 0] == image).nonzero().flatten()
        for among, rows, columns in groups(samples[own]):
            chosen = own[among]
            y = _places(top[chosen], (y2 - y1)[chosen] / down, rows)[..., :, None]
            x = _places(left[chosen], (x2 - x1)[chosen] / across, columns)[..., None, :]
            y, x = torch.broadcast_tensors(y, x)  # (chosen, down, across, rows, columns)
            values = _interpolate(features[image], y.flatten(), x.flatten())
            values = values.view(-1, *y.shape).mean(dim=(-2, -1)).transpose(0, 1)
            pooled = pooled.index_copy(0, chosen, values)
    return pooled


def _places(start: Tensor, side: Tensor, samples: int) -> Tensor:
    """Middles of ``samples`` equal parts of bins ``(k, down, across)``, in a new last axis."""
    part = (torch.arange(samples, device=start.device) + 0.5) / samples
    return start[..., None] + side[..., None] * part


def _interpolate(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values ``(c, n)`` of a map ``(c, h, w)`` at places ``(n,)``; 0 beyond a cell around it."""
    height, width = plane.shape[-2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    grid = torch.stack([x * 2 / max(width - 1, 1) - 1, y * 2 / max(height - 1, 1) - 1], dim=-1)
    values = F.grid_sample(plane[None], grid[None, None], mode='bilinear', padding_mode='border',
                           align_corners=True)
    return values[0, :, 0] * inside


def _precise(input: Tensor, rois: Tensor) -> torch.dtype:
    """Places on a map are told apart in single precision at least."""
    return torch.promote_types(kernel_dtype(input, rois), torch.float)
