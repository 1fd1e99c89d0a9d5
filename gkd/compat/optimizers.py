"""A patch of MMDetection's learning rates by layers, in either version."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import nn


def know_layers_of_students(constructor: type) -> None:
    """Let learning rates that grow from layer to layer do so in a student that is taught, too.

    Reason: the constructor tells layers by names that begin with ``backbone``. A distiller's begin
    with ``student.backbone``, and every layer got the rate of the head.
    For: mmdet 2.2x and 3.x.

    Args:
        constructor: ``LearningRateDecayOptimizerConstructor`` of the installed MMDetection.
    """
    add = constructor.add_params

    @functools.wraps(add)
    def add_by_own_names(self, params, module, **settings):
        add(self, params, WithOwnNames(module), **settings)

    constructor.add_params = add_by_own_names


class WithOwnNames:
    """A model whose student's parameters have the names that they have without a distiller.

    Args:
        model: A distiller, or a detector, which stays as it is.
    """

    def __init__(self, model: nn.Module):
        self.backbone = model.backbone
        self.model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters."""
        for name, parameter in self.model.named_parameters():
            yield name.removeprefix('student.'), parameter
