"""Where the activations of maps are: attention over cells and over channels, of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.device import on_device
from gkd.knowledge.precision import full_precision


class Attention(NamedTuple):
    """Mean absolute activations of every level's map.

    Attributes:
        cells: Mean of every cell, ``(B, H_l * W_l)`` per level.
        channels: Mean of every channel, ``(B, C_l)`` per level.
    """

    cells: list[Tensor]
    channels: list[Tensor]


def attention(maps: Sequence[Tensor]) -> Attention:
    """Attention of every level's map ``(B, C_l, H_l, W_l)``, in float32 at least.

    Example:
        >>> attention([torch.tensor([[[[1.0, 2.0]], [[-3.0, 0.0]]]])])
        Attention(cells=[tensor([[2., 1.]])], channels=[tensor([[1.5000, 1.5000]])])
    """
    return Attention(*map(list, zip(*(MeanMagnitude.apply(feature) for feature in maps))))


class MeanMagnitude(torch.autograd.Function):
    """Mean absolute values of cells and of channels; their gradient takes few operations."""

    @staticmethod
    def forward(ctx, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce a map ``(B, C, H, W)`` to ``(B, H * W)`` and ``(B, C)``."""
        ctx.save_for_backward(feature)
        magnitudes, dtype = feature.abs(), torch.promote_types(feature.dtype, torch.float)
        return (magnitudes.mean(dim=1, dtype=dtype).flatten(1),
                magnitudes.mean(dim=(2, 3), dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, cells: Tensor, channels: Tensor) -> Tensor:
        """Spread both gradients over the map."""
        feature, = ctx.saved_tensors
        count, size = feature.shape[1], feature.shape[2:]
        channels = channels[:, :, None, None] / size.numel()
        return feature.sign().mul_(torch.add(channels, cells.unflatten(1, size)[:, None],
                                             alpha=1 / count))


@full_precision
def attention_masks(attention: Attention, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention masks of every image on every level, with a mean of 1.

    A mask is the softmax of ``attention / temperature`` over the cells, or over the channels,
    times their number. The smaller the temperature, the sharper the mask.

    Args:
        attention: Attention of all levels.
        temperature: Positive.

    Returns:
        Masks of cells ``(L, B, S)`` and of channels ``(L, B, C)``, as long as those of the largest
        level; masks of smaller levels are padded with zeros.

    Example:
        >>> cells, channels = attention_masks(
        ...     Attention([torch.zeros(1, 3), torch.zeros(1, 2)], [torch.zeros(1, 2)] * 2), 0.5)
        >>> cells
        tensor([[[1., 1., 1.]],
        <BLANKLINE>
                [[1., 1., 0.]]])
    """
    masks = []
    for values in attention:
        padded = stack_padded(values, filling=-torch.inf)
        counts = on_device([level.shape[1] for level in values], padded.device, padded.dtype)
        masks.append(torch.softmax(padded / temperature, dim=2) * counts[:, None, None])
    return tuple(masks)


@full_precision
def masked_squared_differences(student: Sequence[Tensor], teacher: Sequence[Tensor],
                               cells: Tensor, channels: Tensor) -> Tensor:
    """Squared differences of every level's maps, each times its masks, summed over channels.

    Args:
        student: The student's adapted maps ``(B, C_l, H_l, W_l)``.
        teacher: The teacher's maps, likewise.
        cells: Masks of cells, ``(L, B, S)``, see :func:`attention_masks`.
        channels: Masks of channels, ``(L, B, C)``.

    Returns:
        Tensor of shape ``(L, B, S)``; smaller levels are padded with zeros.
    """
    squared = [torch.einsum('bchw,bc->bhw', F.mse_loss(own, target, reduction='none'),
                            weights[:, :target.shape[1]]).flatten(1)
               for own, target, weights in zip(student, teacher, channels)]
    return stack_padded(squared, filling=0) * cells


def stack_padded(rows: Sequence[Tensor], filling: float) -> Tensor:
    """Stack ``(B, N_l)`` of every level to ``(L, B, N)``, shorter rows filled up at their end.

    Example:
        >>> stack_padded([torch.ones(1, 3), torch.ones(1, 2)], filling=0)
        tensor([[[1., 1., 1.]],
        <BLANKLINE>
                [[1., 1., 0.]]])
    """
    missing = [max(row.shape[1] for row in rows) - row.shape[1] for row in rows]
    return torch.stack([F.pad(row, (0, count), value=filling) if count else row
                        for row, count in zip(rows, missing)])
