"""Weights that are not finite are never saved."""

from __future__ import annotations

from torch import nn

from gkd.errors import NumericalError


def check_weights(model: nn.Module, clipping: str) -> None:
    """Raise NumericalError if a weight or a statistic is not finite.

    Args:
        model: What is trained.
        clipping: Setting that clips gradients, for the message.
    """
    broken = not_finite(model)
    if broken:
        raise NumericalError(
            f'{len(broken)} weights are not finite any more, first {broken[0]}; they are not '
            f'saved, and the last checkpoint is kept. Lower the learning rate, or clip gradients '
            f'({clipping}).')


def not_finite(model: nn.Module) -> list[str]:
    """Names of the weights and statistics of a model that are not finite."""
    return [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
