"""Patches of defaults that fail on a machine without a GPU, or on today's numpy."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import pkgutil
import sys

import numpy as np
import torch

from gkd.installed import mmdet_major

_HELPERS = (
    'mmdet.apis.train', 'mmdet.core.utils.dist_utils', 'mmdet.core.utils.misc',
    'mmdet.core.anchor.anchor_generator', 'mmdet.core.anchor.point_generator',
    'mmdet.core.hook.sync_random_size_hook', 'mmdet.models.dense_heads.anchor_head',
    'mmdet.models.dense_heads.guided_anchor_head', 'mmdet.models.dense_heads.sabl_retina_head',
    'mmdet.models.dense_heads.vfnet_head', 'mmdet.utils.util_distribution')


def default_to_existing_device() -> None:
    """Turn the default ``device='cuda'`` of mmdet's helpers into 'cpu' where there is no GPU.

    Reason: in MMDetection 2 ``get_anchors``, ``sync_random_seed`` and others fail there unless
    every caller names the device, and mmdet's own samplers do not; MMEngine looks for a GPU when
    it is imported, and never again.
    For: a machine without a GPU, or a command that shall not see it.
    """
    if torch.cuda.is_available():
        return
    if mmdet_major() == 3:
        importlib.import_module('mmengine.device.utils').DEVICE = 'cpu'
        return
    for name in _HELPERS:
        for function in _functions_of(importlib.import_module(name)):
            if function.__defaults__ and 'cuda' in function.__defaults__:
                function.__defaults__ = tuple(
                    'cpu' if default == 'cuda' else default for default in function.__defaults__)


def _functions_of(module) -> list:
    """Functions and methods that are written in ``module``, under their decorators."""
    found = []
    for member in vars(module).values():
        members = vars(member).values() if inspect.isclass(member) else [member]
        for function in members:
            function = inspect.unwrap(function) if callable(function) else function
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                found.append(function)
    return found


def restore_find_loader() -> None:
    """Give ``pkgutil`` back ``find_loader``.

    Reason: mmcv asks it whether its compiled operators are there.
    For: mmcv and mmengine on Python 3.14, which dropped it.
    """
    if not hasattr(pkgutil, 'find_loader'):
        pkgutil.find_loader = _find_loader


def _find_loader(name: str):
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.loader


def fork_workers() -> None:
    """Let the workers of data loaders be forked, where nothing else was chosen.

    Reason: Python 3.14 starts them afresh on Linux, and they would import mmdet without what makes
    it importable here.
    For: mmdet on Python 3.14.
    """
    afresh = sys.version_info >= (3, 14) and sys.platform == 'linux'
    if afresh and multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method('fork')


def restore_numpy_names() -> None:
    """Give numpy back its old names ``np.int`` and ``np.float`` for Python's types.

    Reason: mmdet's ``IoUBalancedNegSampler`` and ``CustomDataset.get_cat_ids`` still use them.
    For: mmdet 2.x with numpy >= 1.24.
    """
    for name, python_type in (('int', int), ('float', float)):
        if name not in vars(np):
            setattr(np, name, python_type)
