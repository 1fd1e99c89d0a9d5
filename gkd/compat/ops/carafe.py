"""CARAFE: enlarge a map, each new cell a weighted sum of old ones around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, kernel_size: int,
                         group_size: int, scale_factor: int) -> None:
    """Reassemble a map.

    Args:
        features: ``(n, c, h, w)``.
        masks: Weights ``(n, group_size * kernel_size ** 2, h * s, w * s)`` of the old cells
            around every new one, ``s`` being ``scale_factor``.
        output: ``(n, c, h * s, w * s)``, written to.
        kernel_size: Side of the square of old cells, odd.
        group_size: Groups of channels with weights of their own.
        scale_factor: New cells on each side of an old one.

    Source: Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, ICCV 2019, Eq. 4.
    """
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(grad_output: Tensor, features: Tensor, masks: Tensor,
                          grad_input: Tensor, grad_masks: Tensor, kernel_size: int,
                          group_size: int, scale_factor: int) -> None:
    """Write the gradients of :func:`carafe_naive_forward`."""
    with torch.enable_grad():
        inputs = [features.detach().requires_grad_(), masks.detach().requires_grad_()]
        output = _reassemble(*inputs, kernel_size, group_size, scale_factor)
        gradients = torch.autograd.grad(output, inputs, grad_output)
    grad_input.copy_(gradients[0])
    grad_masks.copy_(gradients[1])


def carafe_forward(features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor,
                   rmasks: Tensor, output: Tensor, kernel_size: int, group_size: int,
                   scale_factor: int) -> None:
    """:func:`carafe_naive_forward`, as mmcv's faster kernel is called.

    Args:
        rfeatures: Like ``features``, written to; the backward pass gets it instead of them.
        routput: Not used.
        rmasks: Not used.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(grad_output: Tensor, rfeatures: Tensor, masks: Tensor, rgrad_output: Tensor,
                    rgrad_input_hs: Tensor, rgrad_input: Tensor, rgrad_masks: Tensor,
                    grad_input: Tensor, grad_masks: Tensor, kernel_size: int, group_size: int,
                    scale_factor: int) -> None:
    """Write the gradients of :func:`carafe_forward`; what begins with ``rgrad`` is not used."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size,
                          group_size, scale_factor)


def _reassemble(features: Tensor, masks: Tensor, kernel_size: int, groups: int,
                scale: int) -> Tensor:
    images, channels, height, width = features.shape
    reach = kernel_size // 2
    padded = F.pad(features, (reach,) * 4).unflatten(1, (groups, -1))
    masks = masks.reshape(images, groups, kernel_size**2, height, scale, width, scale)
    output = features.new_zeros(images, groups, channels // groups, height, scale, width, scale)
    # Place by place of the kernel, so that no map is copied `kernel_size ** 2` times.
    for place in range(kernel_size**2):
        row, column = divmod(place, kernel_size)
        moved = padded[..., row:row + height, column:column + width]
        output = output + moved[..., None, :, None] * masks[:, :, place, None]
    return output.flatten(1, 2).flatten(2, 3).flatten(3, 4)
