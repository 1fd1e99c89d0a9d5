"""What a method of the user's own must keep to, checked where it would fail or teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gkd.detectors.step import Needs, Step
from gkd.errors import ConfigError
from gkd.knowledge.base import Knowledge


def check_entries(entries: Any, key: str) -> None:
    """Raise ConfigError if what is taught is not given as a list of dicts.

    Args:
        entries: What the config says.
        key: Where, for the message.
    """
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, dict) for e in entries):
        raise ConfigError(f'{key} = {entries!r}: must be a list of dicts, such as '
                          f'[dict(type="PKD")].')


def check_class(kind: Any) -> None:
    """Raise ConfigError if what is registered as a kind of knowledge cannot be one."""
    name = getattr(kind, '__name__', repr(kind))
    if not isinstance(kind, type) or not issubclass(kind, Knowledge):
        raise ConfigError(f'model.knowledge: {name} is no subclass of gkd.knowledge.Knowledge.')
    if kind.forward is Knowledge.forward:
        raise ConfigError(f'model.knowledge: {name} has no method `forward(self, step)`, which '
                          f'returns its losses.')


def check_built(kind: Knowledge) -> None:
    """Raise ConfigError if a subclass left out what the training asks of it."""
    name = type(kind).__name__
    if '_modules' not in vars(kind):
        raise ConfigError(f'model.knowledge: {name}.__init__ does not call '
                          f'`super().__init__(pair)`; it must, before all else.')
    if not isinstance(kind.needs, Needs):
        raise ConfigError(f'model.knowledge: {name}.needs is {kind.needs!r}; write '
                          f'`needs = gkd.detectors.Needs(logits=True)` or the like.')


def check_losses(kind: Knowledge, losses: Any) -> None:
    """Raise ConfigError if a kind of knowledge did not return losses by name.

    Nothing is read from the values: that would wait for the GPU.

    Args:
        kind: The kind of knowledge.
        losses: What it returned.
    """
    where = f'model.knowledge: {type(kind).__name__}.forward'
    if not isinstance(losses, dict):
        raise ConfigError(f'{where} returned a {type(losses).__name__}; it must return a dict of '
                          f'losses by name, such as dict(loss_mine=...).')
    for name, loss in losses.items():
        if not isinstance(name, str):
            raise ConfigError(f'{where}: {name!r} is no name; the name of a loss is text that '
                              f'begins with `loss`.')
        for term in terms(loss):
            if not isinstance(term, Tensor) or not term.is_floating_point():
                given = term.dtype if isinstance(term, Tensor) else f'a {type(term).__name__}'
                raise ConfigError(f'{where}: {name} is {given}; it must be a tensor of '
                                  f'floating-point numbers, or a list of such.')
        if 'loss' not in name and any(term.requires_grad for term in terms(loss)):
            raise ConfigError(f'{where}: {name} would not be added to the losses, as its name '
                              f'does not begin with `loss`. Rename it; if it is only to be '
                              f'logged, detach it.')


def check_gradients(kind: Knowledge, losses: dict, step: Step) -> None:
    """Raise ConfigError if a loss would teach nothing, as it has no gradient.

    Args:
        kind: The kind of knowledge.
        losses: What it returned.
        step: The step; one without objects, or of a frozen student, shows nothing.
    """
    if not any(map(len, step.gt_boxes)) or not any(x.requires_grad for x in step.student.maps):
        return
    for name, loss in losses.items():
        if 'loss' in name and not any(term.requires_grad for term in terms(loss)):
            raise ConfigError(f'model.knowledge: {type(kind).__name__}.forward: {name} has no '
                              f'gradient, so that it would teach nothing. Is what comes from the '
                              f'student detached? Where there is nothing to teach, return a 0 '
                              f'that depends on the student\'s maps.')


def terms(loss: Any) -> Sequence:
    """The tensors of a loss, which may be a list of them; MMDetection takes no tuple."""
    return loss if isinstance(loss, list) else [loss]
