"""What some detectors count or draw in their training steps and leave out of their weights."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
from torch import nn

# Attributes by class of either MMDetection. One of them may lack an attribute.
KEPT = {
    'BatchSyncRandomResize': ('_input_size',),
    'YOLOX': ('_input_size', '_progress_in_iter'),
    'DynamicRoIHead': ('iou_history', 'beta_history', 'bbox_assigner.pos_iou_thr',
                       'bbox_assigner.neg_iou_thr', 'bbox_assigner.min_pos_iou',
                       'bbox_head.loss_bbox.beta'),
    'DDODHead': ('cls_num_pos_samples_per_level',),
    'DropBlock': ('iter_cnt',),
}


def module_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the next training step of a model depends on besides weights and buffers.

    Returns:
        Values by attribute, by name of the module; numbers, and lists and tuples of them.
    """
    found = {}
    for name, module in model.named_modules():
        kept = {attribute: plain(attrgetter(attribute)(module))
                for attribute in kept_attributes(module)}
        if kept:
            found[name] = kept
    return found


def restore_module_state(model: nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Put back what :func:`module_state` returned for a model of the same config."""
    for name, module in model.named_modules():
        for attribute in state.get(name, {}).keys() & set(kept_attributes(module)):
            owner, _, last = attribute.rpartition('.')
            setattr(attrgetter(owner)(module) if owner else module, last,
                    plain(state[name][attribute]))


def kept_attributes(module: nn.Module) -> list[str]:
    """Attributes that a module has of those that its classes keep."""
    return [attribute for kind in type(module).__mro__ for attribute in KEPT.get(kind.__name__, ())
            if has(module, attribute)]


def has(module: nn.Module, attribute: str) -> bool:
    """Whether a dotted attribute is there."""
    try:
        attrgetter(attribute)(module)
    except AttributeError:
        return False
    return True


def plain(value: Any) -> Any:
    """A copy of numbers that a checkpoint can hold without code to run.

    Example:
        >>> plain([np.float64(0.5), (1, None)])
        [0.5, (1, None)]
    """
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value
