"""Full precision for losses and similarities, whatever precision the networks run in."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
# Layers that pass their weights to autocast as they are. Subclasses may compute something with
# theirs before, such as a standardised weight.
CAST = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
Function = TypeVar('Function', bound=Callable)


def full_precision(function: Function) -> Function:
    """Decorate a function of tensors to compute in float32 at least.

    Autocast is off inside, and half-precision tensors among the arguments, or in lists and tuples
    among them, arrive as float32; float32 and float64 pass through.

    Args:
        function: Takes at least one tensor.

    Returns:
        The same function, safe under autocast.

    Example:
        >>> import torch
        >>> @full_precision
        ... def total(values):
        ...     return values.sum()
        >>> total(torch.ones(300, dtype=torch.bfloat16))
        tensor(300.)
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        values = (*args, *kwargs.values())
        device = next(_devices(values))
        with torch.autocast(device_type=device.type, enabled=False):
            return function(
                *map(_widen, args), **{name: _widen(value) for name, value in kwargs.items()}
            )

    return wrapped


def cast_weights(layers: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of frozen layers with the weights that autocast would cast to ``dtype``.

    Autocast remembers its casts of weights that are trained, and casts others anew at every use.
    The copy computes the same under autocast.

    Args:
        layers: Layers whose weights are not trained.
        dtype: Autocast's.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
        >>> [layer.weight.dtype for layer in cast_weights(layers, torch.bfloat16)]
        [torch.bfloat16, torch.float32]
    """
    layers = copy.deepcopy(layers)
    for layer in layers.modules():
        if type(layer).forward in CAST:
            layer.to(dtype)
    return layers


def _devices(values: Iterable) -> Iterator[torch.device]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.device
        elif isinstance(value, (list, tuple)):
            yield from _devices(value)


def _widen(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_widen, value))
    half = isinstance(value, Tensor) and value.dtype in HALF
    return value.float() if half else value
