"""Training and eval mode of a detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(detector: nn.Module) -> Iterator[None]:
    """Put a detector into eval mode, and every part of it back into its own afterwards.

    Example:
        >>> layer = nn.Dropout()
        >>> with eval_mode(layer):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    with own_modes_afterwards(detector):
        detector.eval()
        yield


@contextmanager
def steps_without_traces(detector: nn.Module) -> Iterator[None]:
    """Let a detector run training steps with its single layers in eval mode.

    DINO and others compute in training what they do not compute in tests. Batch normalisation and
    dropout, which are single layers, compute as in tests: no statistics change.

    Example:
        >>> block = nn.Sequential(nn.BatchNorm2d(3))
        >>> with steps_without_traces(block):
        ...     print(block.training, block[0].training)
        True False
    """
    with own_modes_afterwards(detector):
        for module in detector.modules():
            module.training = next(module.children(), None) is not None
        yield


@contextmanager
def own_modes_afterwards(detector: nn.Module) -> Iterator[None]:
    """Put every part of a detector back into its own mode afterwards."""
    modes = [(module, module.training) for module in detector.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
