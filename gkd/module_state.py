"""What some detectors count or draw in their training steps and leave out of their weights."""

from __future__ import annotations

from collections.abc import Iterator
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
    # Its first draw of boxes sets -1 to 0, and draws otherwise than all later ones.
    'IoUBalancedNegSampler': ('floor_thr',),
}


# What hooks set in the middle of a training, and set again where it goes on.
SCHEDULED = {'YOLOXHead': ('use_l1',)}

Parts = list[tuple[str, Any, list[str]]]  # name, module or sampler, attributes


def module_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the training from here on depends on besides weights, buffers and the epoch.

    Returns:
        Values by attribute, by name of the module or sampler; numbers, and lists and tuples of
        them.
    """
    return state_of(counting_parts(model))


def state_of(parts: Parts) -> dict[str, dict[str, Any]]:
    """What :func:`counting_parts` found, with its values; as :func:`module_state` returns it."""
    return {name: {attribute: plain(attrgetter(attribute)(part)) for attribute in attributes}
            for name, part, attributes in parts}


def counting_parts(model: nn.Module, scheduled: bool = False) -> Parts:
    """The parts of a model that count or draw for later steps, and where they keep it.

    Args:
        model: The model.
        scheduled: Whether what hooks set in the middle of a training belongs to it.
    """
    found = [(name, part, kept_attributes(part, scheduled)) for name, part in named_parts(model)]
    return [entry for entry in found if entry[2]]


def restore_module_state(model: nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Put back what :func:`module_state` or :func:`state_of` returned for such a model."""
    for name, part, attributes in counting_parts(model, scheduled=True):
        for attribute in state.get(name, {}).keys() & set(attributes):
            owner, _, last = attribute.rpartition('.')
            setattr(attrgetter(owner)(part) if owner else part, last,
                    plain(state[name][attribute]))


def named_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """A model's modules and the samplers of boxes that they hold, which are no modules."""
    for name, module in model.named_modules():
        yield name, module
        yield from named_samplers(name, module)


def named_samplers(name: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Samplers among the attributes of a module or of another sampler, at every depth."""
    for attribute, value in vars(owner).items():
        several = isinstance(value, (list, tuple))  # one a stage
        for number, held in enumerate(value if several else [value]):
            # One that draws positives and negatives itself holds itself as both.
            if held is not owner and is_sampler(held):
                path = f'{name}.{attribute}.{number}' if several else f'{name}.{attribute}'
                yield path, held
                yield from named_samplers(path, held)


def is_sampler(value: Any) -> bool:
    """Whether a value is one of MMDetection's samplers of boxes."""
    return any(kind.__name__ == 'BaseSampler' for kind in type(value).__mro__)


def kept_attributes(part: Any, scheduled: bool) -> list[str]:
    """Attributes that a module or sampler has of those that its classes keep.

    Args:
        part: The module or sampler.
        scheduled: As in :func:`counting_parts`.
    """
    tables = (KEPT, SCHEDULED) if scheduled else (KEPT,)
    return [attribute for kind in type(part).__mro__ for table in tables
            for attribute in table.get(kind.__name__, ()) if has(part, attribute)]


def has(part: Any, attribute: str) -> bool:
    """Whether a dotted attribute is there."""
    try:
        attrgetter(attribute)(part)
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
