"""How the weights of convolutions lie in memory."""

from __future__ import annotations

from torch import channels_last, device, nn


def place(model: nn.Module, target: device) -> nn.Module:
    """Move a model to its device, on the CPU with the channels of its convolutions last.

    A convolution with such weights returns a map of the same layout, so that layers after it work
    on a cell's channels together: with one thread a training step of the digit scenes' teacher
    takes three quarters of the time. Values change by rounding alone.

    Args:
        model: Changed in place.
        target: The device.

    Returns:
        The model.
    """
    model.to(target)
    if target.type == 'cpu':
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=channels_last)
    return model
