"""How the weights of convolutions lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import channels_last, device, nn


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
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=channels_last)
    return model
