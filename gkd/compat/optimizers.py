"""A patch of how optimisers of either MMDetection are set up."""

from __future__ import annotations

import functools
from typing import Any, Callable

from torch import nn

from gkd.frameworks import DetectorShell


def show_students_to_constructors(default: type) -> None:
    """Let constructors that set a rate for each layer see a student as without a teacher.

    Reason: MMDetection's for ConvNeXt, as others, tells layers by names that begin with
    ``backbone``. A distiller's begin with ``student.backbone``, and every layer got the rate of
    the head.
    For: mmcv 1.x, mmengine 0.x.

    Args:
        default: The constructor that others inherit from. By itself it does as before: it looks
            for its keys anywhere in a name.
    """
    build = default.__call__

    @functools.wraps(build)
    def build_showing_students(self, model):
        if type(self).add_params is not default.add_params:
            self.add_params = functools.partial(add_student_first, self.add_params)
        return build(self, model)

    default.__call__ = build_showing_students


def add_student_first(add: Callable, groups: list[dict], module: nn.Module,
                      *args: Any, **settings: Any) -> None:
    """Add a model's parameters; of a distiller the student's, then all others with usual rates.

    Args:
        add: The constructor's method for models.
        groups: The optimiser's groups of parameters.
        module: The model, or a part of it if ``add`` goes through the parts.
        *args: Further arguments of ``add``.
        **settings: Likewise.
    """
    if not isinstance(module, DetectorShell):
        add(groups, module, *args, **settings)
        return
    add(groups, module.student, *args, **settings)
    others = {name: parameter for name, parameter in module.named_parameters()
              if parameter.requires_grad and not name.startswith('student.')}
    if not others:
        return
    group = dict(params=[*others.values()])
    if 'param_names' in groups[0]:  # torch takes the names of all or of none
        group['param_names'] = [*others]
    groups.append(group)
