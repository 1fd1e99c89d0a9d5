"""Run a training step whose loss was not finite again, and find where that begins."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gkd.bank import PrototypeBank
from gkd.commands.layout import place
from gkd.compat.weights import load_strictly
from gkd.distiller import Distiller
from gkd.errors import shorten
from gkd.finite.step import KeptStep
from gkd.frameworks import BaseDetector, Config
from gkd.looking.door import build_model, training_losses
from gkd.module_state import restore_module_state
from gkd.randomness import set_random_state


def replay(config: Config, path: str) -> tuple[dict[str, float], str]:
    """Run a step again that ``FiniteLossHook`` kept, on the CPU.

    Args:
        config: The config of the run.
        path: The file.

    Returns:
        The losses of this process by name, in order, ``loss`` is their sum; and a sentence that
        says where the first value that is not finite comes from.

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
    restore_module_state(model, step.counts or {})
    set_random_state(step.random)
    with torch.no_grad(), layers_not_finite(model) as layers:
        losses = training_losses(model, step.batch, step.epoch)
    # Its forward pass has spoilt the statistics of batch normalisation.
    spoilt = {f'weights/{name}' for name, _ in model.named_buffers()}
    given = [part for part in step.broken() if part not in spoilt]
    return losses, origin(given, layers, losses)


def origin(given: Sequence[str], layers: Sequence[str], losses: Mapping[str, float]) -> str:
    """Where the first value comes from that is not finite.

    Args:
        given: Parts of the step that are not finite.
        layers: Layers that returned such values, in order.
        losses: What they came to.
    """
    if given:
        return f'Not finite in the step itself: {shorten(given)}.'
    if layers:
        return f'The first layer that returned a value that is not finite: {layers[0]}.'
    terms = [name for name, value in losses.items() if not math.isfinite(value)]
    if terms:
        return f'All layers returned finite values; not finite are {shorten(terms)}.'
    return ('All losses are finite here: on the CPU, without mixed precision, with this config '
            'and teacher.')


@contextmanager
def layers_not_finite(model: BaseDetector) -> Iterator[list[str]]:
    """Collect, while a model runs, names of the layers that return values that are not finite.

    Args:
        model: The model; of a distiller the teacher's layers are watched, too.

    Yields:
        The names, in the order in which the layers end: what is inside of another comes first.
    """
    found: list[str] = []

    def watch(name: str, layer: nn.Module):
        def look(layer: nn.Module, inputs: tuple, output: Any) -> None:
            if not is_finite(output):
                found.append(name)
        return layer.register_forward_hook(look)

    layers = [*model.named_modules()]
    if isinstance(model, Distiller):
        layers += model.teacher.named_modules(prefix='teacher')
    watches = [watch(name, layer) for name, layer in layers if layer is not model]
    try:
        yield found
    finally:
        for each in watches:
            each.remove()


def is_finite(value: Any) -> bool:
    """Whether all tensors in what a layer returns are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return all(map(is_finite, value))
