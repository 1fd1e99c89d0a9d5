"""Weights of a checkpoint are loaded completely or not at all."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Union

import torch
from torch import nn

from gkd.compat.mismatch import describe_mismatch
from gkd.compat.wrapper import unwrap
from gkd.errors import CheckpointError


def class_names(checkpoint: dict) -> Union[tuple[str, ...], None]:
    """Names of the classes that a checkpoint was trained on, in their order.

    Args:
        checkpoint: A loaded checkpoint of MMDetection 2.x (``meta['CLASSES']``) or 3.x
            (``meta['dataset_meta']``, with the names under 'classes' or 'CLASSES').

    Returns:
        The names, None if it does not say.
    """
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        return None
    inner = meta.get('dataset_meta')
    for place in (inner if isinstance(inner, dict) else {}, meta):
        for key in ('classes', 'CLASSES'):
            names = place.get(key)
            if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def get_state_dict(checkpoint: dict, source: str) -> OrderedDict:
    """Take the weights out of a checkpoint.

    Args:
        checkpoint: ``dict(state_dict=...)`` as mmcv writes it, ``dict(model=...)``, or the
            weights themselves.
        source: Where it comes from, for messages.

    Returns:
        The tensors by name, without the ``module.`` that a data-parallel wrapper puts in front.

    Raises:
        CheckpointError: There are no weights in it.
    """
    weights = checkpoint
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            weights = checkpoint[key]
            break
    if not any(torch.is_tensor(value) for value in weights.values()):
        raise CheckpointError(
            f'{source} holds no weights: expected tensors under `state_dict`, found the keys '
            f'{sorted(map(str, checkpoint))[:10]}.')
    state_dict = OrderedDict((re.sub(r'^module\.', '', name), value)
                             for name, value in weights.items())
    # The versions of the modules that wrote it: modules use them to convert older weights.
    state_dict._metadata = getattr(weights, '_metadata', OrderedDict())
    return state_dict


def ema_copies(names: Iterable[str]) -> set[str]:
    """Names in a checkpoint of the copies that an ``EMAHook`` keeps beside the weights.

    Such a hook registers a buffer for every weight, and swaps both before an evaluation.

    Example:
        >>> ema_copies(['neck.bias', 'ema_neck_bias', 'ema_head.bias'])
        {'ema_neck_bias'}
    """
    names = set(names)
    flat = {name.replace('.', '_') for name in names}
    return {name for name in names if name.startswith('ema_') and name[4:] in flat}


def load_strictly(model: nn.Module, state_dict: dict, source: str) -> None:
    """Load weights that fit the model exactly, or change nothing and say what does not fit.

    ``num_batches_tracked`` may be missing: batch normalisation counted nothing before torch 1.0,
    and uses the count only without a momentum.

    Args:
        model: The model, possibly in a (distributed) data-parallel wrapper.
        state_dict: Its weights, or a checkpoint that holds them.
        source: The file they come from, for messages.

    Raises:
        CheckpointError: The weights do not fit; it names missing, unexpected and mis-shaped keys.
    """
    model = unwrap(model)
    state_dict = get_state_dict(state_dict, source)
    own = model.state_dict()
    for name in ema_copies(state_dict) - own.keys():
        del state_dict[name]
    misshaped = {name: (tuple(value.shape), tuple(own[name].shape))
                 for name, value in state_dict.items()
                 if name in own and value.shape != own[name].shape}
    fitting = OrderedDict((name, value) for name, value in state_dict.items()
                          if name not in misshaped)
    fitting._metadata = state_dict._metadata

    before = OrderedDict((name, value.clone()) for name, value in own.items())
    before._metadata = own._metadata
    try:
        # Not by comparing names alone: modules may convert the names of older versions.
        result = model.load_state_dict(fitting, strict=False)
        problem = ''
    except RuntimeError as error:
        result, problem = None, str(error)
    missing, unexpected = [], []
    if result is not None:
        unexpected = list(result.unexpected_keys)
        missing = [name for name in result.missing_keys
                   if name not in misshaped and not name.endswith('num_batches_tracked')]
    if missing or unexpected or misshaped or problem:
        model.load_state_dict(before, strict=False)
        raise CheckpointError(describe_mismatch(
            source, type(model).__name__, missing, unexpected, misshaped,
            in_model=set(own), in_file=set(state_dict), problem=problem))
