"""Where the activations of a map are: attention over its cells and over its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd.knowledge.precision import full_precision


@full_precision
def spatial_attention(feature: Tensor) -> Tensor:
    """Mean absolute activation of every cell: ``(B, C, H, W)`` to ``(B, H, W)``.

    Example:
        >>> spatial_attention(torch.tensor([[[[1.0, 2.0]], [[-3.0, 0.0]]]]))
        tensor([[[2., 1.]]])
    """
    return feature.abs().mean(dim=1)


@full_precision
def channel_attention(feature: Tensor) -> Tensor:
    """Mean absolute activation of every channel: ``(B, C, H, W)`` to ``(B, C)``.

    Example:
        >>> channel_attention(torch.tensor([[[[1.0, 2.0]], [[-3.0, 0.0]]]]))
        tensor([[1.5000, 1.5000]])
    """
    return feature.abs().mean(dim=(2, 3))


@full_precision
def attention_mask(attention: Tensor, temperature: float) -> Tensor:
    """Share of each image's attention, with a mean of 1.

    The softmax of ``attention / temperature`` over everything but the images, times the number
    of values. The smaller the temperature, the sharper the mask.

    Args:
        attention: Attention over cells ``(B, H, W)`` or channels ``(B, C)``.
        temperature: Positive.

    Returns:
        Tensor of the shape of ``attention``.

    Example:
        >>> attention_mask(torch.tensor([[0.0, 0.0, 0.0]]), temperature=0.5)
        tensor([[1., 1., 1.]])
    """
    values = attention.flatten(1)
    mask = torch.softmax(values / temperature, dim=1) * values.shape[1]
    return mask.view_as(attention)
