"""How the weights of convolutions lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, channels_last, device, nn

# oneDNN's gradient of such a convolution writes beyond its buffer if it has fewer input channels
# than this, which ends the process: https://github.com/uxlfoundation/oneDNN/issues/6035
SAFE_CHANNELS = 16


def place(model: nn.Module, target: device, config: Mapping[str, Any]) -> nn.Module:
    """Move a model to its device, and put channels last if the config says so.

    A convolution whose weights have channels last returns such a map, so that layers after it
    work on a cell's channels together. Values change by rounding alone.

    Args:
        model: Changed in place.
        target: The device.
        config: With ``cpu_channels_last=True`` convolutions get channels last if ``target`` is a
            CPU. This is not the default, because layers that take a ``view`` of a map then fail.

    Returns:
        The model.
    """
    model.to(target)
    if config.get('cpu_channels_last') and target.type == 'cpu':
        for module in model.modules():
            if overflows(module):
                module.register_forward_pre_hook(channels_first)
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=channels_last)
    return model


def overflows(module: nn.Module) -> bool:
    """Whether oneDNN's gradient of a convolution spoils memory with channels last."""
    return (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}
            and max(module.stride) > 1 and module.in_channels // module.groups < SAFE_CHANNELS)


def channels_first(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook of a layer that must not see channels last."""
    return tuple(x.contiguous() for x in inputs)
