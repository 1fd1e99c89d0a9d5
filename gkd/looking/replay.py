"""Run a training step again whose loss was not finite."""

from __future__ import annotations

from collections import OrderedDict

import torch

from gkd.bank import PrototypeBank
from gkd.commands.layout import place
from gkd.compat.checkpoint import load_strictly
from gkd.finite.step import KeptStep
from gkd.frameworks import Config
from gkd.looking.door import build_model, training_losses
from gkd.randomness import set_random_state


def replay(config: Config, path: str) -> dict[str, float]:
    """Run a step again that ``FiniteLossHook`` kept, on the CPU.

    Args:
        config: The config of the run.
        path: The file.

    Returns:
        The losses of this process by name, in order; ``loss`` is their sum.

    Raises:
        CheckpointError: The file is no such step, or is of another model.
    """
    step = KeptStep.load(path)
    model = place(build_model(config), torch.device('cpu'), config)
    weights = OrderedDict(step.weights)
    # Without them modules would take the weights for those of an earlier version.
    weights._metadata = model.state_dict()._metadata
    load_strictly(model, weights, path)
    model.train()
    if step.bank is not None:
        model.bank = PrototypeBank.from_state_dict(step.bank)
    if step.progress is not None:
        model.progress, model.teacher_columns = step.progress, step.teacher_columns
    set_random_state(step.random)
    with torch.no_grad():
        return training_losses(model, step.batch)
