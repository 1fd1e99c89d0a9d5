"""Weights that are not finite are never saved; how a run ends whose loss is not finite."""

from __future__ import annotations

from torch import nn

from gkd.errors import NumericalError


def check_weights(model: nn.Module, clipping: str) -> None:
    """Raise NumericalError if a weight or a statistic is not finite.

    Args:
        model: What is trained.
        clipping: Setting that clips gradients, for the message.
    """
    broken = [name for name, tensor in model.state_dict().items()
              if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise NumericalError(
            f'{len(broken)} weights are not finite any more, first {broken[0]}; they are not '
            f'saved, and the last checkpoint is kept. Lower the learning rate, or clip gradients '
            f'({clipping}).')


def end_of_run(skipped: int, clipping: str) -> str:
    """Why a run ends at a loss that is not finite, and what can be done.

    Args:
        skipped: Steps that were skipped before.
        clipping: Setting that clips gradients.
    """
    after = f' after {skipped} skipped steps' if skipped else ''
    return (f'The run ends{after}; weights are those before this step. Usual causes: a learning '
            f'rate that is too high, no warm-up, no gradient clipping ({clipping}), boxes without '
            f'area. To leave out such steps: custom_hooks = [dict(type="FiniteLossHook", '
            f'skip=10)].')
