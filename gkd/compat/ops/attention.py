"""Multi-scale deformable attention, in torch's own operators on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor,
                           value_level_start_index: Tensor, sampling_locations: Tensor,
                           attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Sum samples of the maps of several levels, weighted by attention.

    mmcv calls it for tensors on GPUs; on CPUs it computes the same by itself.

    Args:
        value: Maps ``(n, sum of h_l * w_l, heads, c)``, level after level.
        value_spatial_shapes: ``(levels, 2)`` int64: ``h_l, w_l``.
        value_level_start_index: Where each level starts, ``(levels,)``; follows from the shapes.
        sampling_locations: ``(n, queries, heads, levels, points, 2)``, ``x, y`` in [0, 1].
        attention_weights: ``(n, queries, heads, levels, points)``.
        im2col_step: Not used.

    Returns:
        ``(n, queries, heads * c)``.

    Source: Zhu et al., Deformable DETR, ICLR 2021, Eq. 3.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    shapes = value_spatial_shapes.tolist()  # one copy to the host instead of two per level
    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations,
                                               attention_weights)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor,
                            value_level_start_index: Tensor, sampling_locations: Tensor,
                            attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor,
                            grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_()
                  for tensor in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn_forward(inputs[0], value_spatial_shapes, value_level_start_index,
                                        *inputs[1:], im2col_step)
        gradients = torch.autograd.grad(output, inputs, grad_output)
    for gradient, target in zip(gradients, (grad_value, grad_sampling_loc, grad_attn_weight)):
        target.copy_(gradient)
