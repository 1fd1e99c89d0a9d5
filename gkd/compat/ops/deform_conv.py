"""Deformable convolution 1 and 2, on torchvision's operator, which computes both."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.compat.ops.precision import kernel_dtype

# Farther away than any map is wide, and exact in half precision.
FAR = 2.0**15


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor,
                        columns: Tensor, ones: Tensor, kW: int, kH: int, dW: int, dH: int,
                        padW: int, padH: int, dilationW: int, dilationH: int, group: int,
                        deformable_group: int, im2col_step: int) -> None:
    """Convolve where offsets move each place that the kernel reads.

    Args:
        input: ``(n, c, h, w)``.
        weight: ``(c', c / group, kH, kW)``.
        offset: ``(n, deformable_group * 2 * kH * kW, h', w')`` in cells, down and across in turn.
            A place that is not finite, or off the map, reads 0.
        output: ``(n, c', h', w')``, written to.
        columns: Not used.
        ones: Not used.
        kW: Columns of the kernel; ``kH`` its rows. The other pairs likewise: stride ``dW``,
            ``dH``, padding and dilation.
        group: Groups of channels.
        deformable_group: Groups of channels with offsets of their own.
        im2col_step: Not used; torchvision chooses how many images it takes at a time.

    Source: Dai et al., Deformable Convolutional Networks, ICCV 2017.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(input: Tensor, offset: Tensor, grad_output: Tensor,
                               grad_input: Tensor, grad_offset: Tensor, weight: Tensor,
                               columns: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int,
                               padH: int, dilationW: int, dilationH: int, group: int,
                               deformable_group: int, im2col_step: int) -> None:
    """Write the gradients of input and offset of :func:`deform_conv_forward`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    gradients = _gradients(grad_output, input, weight, offset, None, geometry)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, grad_output: Tensor,
                                    grad_weight: Tensor, columns: Tensor, ones: Tensor, kW: int,
                                    kH: int, dW: int, dH: int, padW: int, padH: int,
                                    dilationW: int, dilationH: int, group: int,
                                    deformable_group: int, scale: float,
                                    im2col_step: int) -> None:
    """Write the gradient of the weight of :func:`deform_conv_forward`, times ``scale``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # The gradient does not depend on the weight itself.
    weight = torch.zeros_like(grad_weight)
    grad_weight.copy_(_gradients(grad_output, input, weight, offset, None, geometry)[1] * scale)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor,
                                  offset: Tensor, mask: Tensor, output: Tensor, columns: Tensor,
                                  kernel_h: int, kernel_w: int, stride_h: int, stride_w: int,
                                  pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
                                  group: int, deformable_group: int, with_bias: bool) -> None:
    """:func:`deform_conv_forward`, with a factor for each place that the kernel reads.

    Args:
        input: ``(n, c, h, w)``.
        weight: ``(c', c / group, kernel_h, kernel_w)``.
        bias: ``(c',)``; empty without ``with_bias``.
        ones: Not used.
        offset: ``(n, deformable_group * 2 * kernel_h * kernel_w, h', w')``; or of a larger map,
            of which mmcv reads each image's first numbers as if they were of this shape (DyHead
            was trained so).
        mask: Factors ``(n, deformable_group * kernel_h * kernel_w, h', w')``; likewise.
        output: ``(n, c', h', w')``, written to.
        columns: Not used.

    Source: Zhu et al., Deformable ConvNets v2, CVPR 2019.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    size = output.shape[-2:]
    output.copy_(_convolve(input, weight, _first_of(offset, size), _first_of(mask, size),
                           bias if with_bias else None, geometry))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor,
                                   offset: Tensor, mask: Tensor, columns: Tensor,
                                   grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor,
                                   grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor,
                                   kernel_h: int, kernel_w: int, stride_h: int, stride_w: int,
                                   pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
                                   group: int, deformable_group: int, with_bias: bool) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    size = grad_output.shape[-2:]
    gradients = _gradients(grad_output, input, weight, _first_of(offset, size),
                           _first_of(mask, size), geometry)
    grad_input.copy_(gradients[0])
    grad_weight.copy_(gradients[1])
    _put_first(grad_offset, gradients[2])
    _put_first(grad_mask, gradients[3])
    if with_bias:
        grad_bias.copy_(gradients[4])


def _convolve(input: Tensor, weight: Tensor, offset: Tensor, mask: Optional[Tensor],
              bias: Optional[Tensor], geometry: tuple) -> Tensor:
    input, weight, offset, mask, bias = _prepared(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, *geometry,
                                               mask.dim() == 4)


def _gradients(grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor,
               mask: Optional[Tensor], geometry: tuple) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    input, weight, offset, mask, bias = _prepared(input, weight, offset, mask, None)
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(input.dtype), input, weight, offset, mask, bias, *geometry,
        mask.dim() == 4)


def _prepared(input: Tensor, weight: Tensor, offset: Tensor, mask: Optional[Tensor],
              bias: Optional[Tensor]) -> list[Tensor]:
    """Fill in missing arguments, and convert all to what torchvision's kernels can take."""
    dtype = kernel_dtype(input, weight, offset)
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    # torchvision takes the integer part before it checks whether a place is on the map. For a
    # place that is no number it would read or write anywhere in memory.
    offset = offset.nan_to_num(FAR, FAR, -FAR).clamp(-FAR, FAR)
    return [tensor.to(dtype) for tensor in (input, weight, offset, mask, bias)]


def _first_of(values: Tensor, size: torch.Size) -> Tensor:
    """Each image's first numbers of ``(n, c, h, w)``, read as ``(n, c, *size)``."""
    if values.shape[-2:] == size:
        return values
    count = values.shape[1] * size[0] * size[1]
    return values.flatten(1)[:, :count].unflatten(1, (values.shape[1], *size))


def _put_first(target: Tensor, values: Tensor) -> None:
    """Write ``values`` where :func:`_first_of` reads them; the rest of ``target`` stays 0."""
    rest = target[0].numel() - values[0].numel()
    target.copy_(F.pad(values.flatten(1), (0, rest)).view(target.shape))
