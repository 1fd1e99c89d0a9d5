"""Weights in autocast's precision, with few operations.

Autocast casts every weight on its own, and on a GPU the time of so small an operation is that of
starting it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkd.knowledge.precision import HALF

if TYPE_CHECKING:
    from gkd.detectors.step import Step
    from gkd.knowledge.base import Knowledge

# Layers that pass their weights to autocast as they are. Subclasses may compute something with
# theirs before, such as a standardised weight.
CAST = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def teach(kind: Knowledge, step: Step) -> dict[str, Tensor]:
    """The losses of one kind of knowledge; under autocast its weights are cast all at once.

    Args:
        kind: What is taught.
        step: What both detectors saw and computed. Under autocast the student's maps are in its
            precision.

    Returns:
        Losses by name, the same as ``kind(step)``.
    """
    dtype = step.student.maps[0].dtype
    names = names_of_cast_weights(kind) if dtype in HALF else []
    if not names:
        return kind(step)
    weights = cast_together([kind.get_parameter(name) for name in names], dtype)
    return torch.func.functional_call(kind, dict(zip(names, weights)), step)


def names_of_cast_weights(module: nn.Module) -> list[str]:
    """Weights and biases, in float32, of the layers for which autocast casts them.

    Example:
        >>> names_of_cast_weights(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)))
        ['0.weight', '0.bias']
    """
    return [name for prefix, layer in module.named_modules() if type(layer).forward in CAST
            for name, weight in layer.named_parameters(prefix, recurse=False)
            if weight.dtype == torch.float]


def cast_together(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast all weights in one go; they keep their shapes and layouts.

    Args:
        weights: Float32, dense in memory.
        dtype: What they become.

    Returns:
        The weights, parts of one tensor, which lead gradients back to each.

    Example:
        >>> [weight.tolist() for weight in cast_together([torch.ones(2), torch.eye(1)],
        ...                                              torch.bfloat16)]
        [[1.0, 1.0], [[1.0]]]
    """
    orders = [order_in_memory(weight) for weight in weights]
    rows = [weight.permute(order) for weight, order in zip(weights, orders)]
    joint = torch.cat([row.flatten() for row in rows]).to(dtype).split([*map(torch.numel, rows)])
    return [part.view(row.shape).permute(*map(order.index, range(row.dim())))
            for part, row, order in zip(joint, rows, orders)]


def order_in_memory(tensor: Tensor) -> list[int]:
    """Dimensions from the one with the largest stride to that with the smallest.

    Example:
        >>> order_in_memory(torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
        [0, 2, 3, 1]
    """
    return sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))


def cast_frozen(layers: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of frozen layers with the weights that autocast would cast to ``dtype``.

    Autocast remembers its casts of weights that are trained, and casts others anew at every use.
    The copy computes the same under autocast.

    Args:
        layers: Layers whose weights are not trained.
        dtype: Autocast's.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
        >>> [layer.weight.dtype for layer in cast_frozen(layers, torch.bfloat16)]
        [torch.bfloat16, torch.float32]
    """
    layers = copy.deepcopy(layers)
    for name in names_of_cast_weights(layers):
        weight = layers.get_parameter(name)
        weight.data = weight.data.to(dtype)
    return layers
