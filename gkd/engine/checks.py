"""Checks of a config of MMDetection 3 before MMEngine's runner gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.registry import OPTIMIZERS
from mmengine.config import Config

from gkd.errors import ConfigError, did_you_mean

# Settings that count something, and the smallest value of each.
COUNTS = {'train_cfg.val_interval': 1, 'train_cfg.val_begin': 0,
          'default_hooks.checkpoint.interval': -1, 'default_hooks.checkpoint.max_keep_ckpts': -1,
          'default_hooks.checkpoint.inside_epoch': 0}
# What MMEngine takes together or not at all.
TOGETHER = (('train_dataloader', 'train_cfg', 'optim_wrapper'),
            ('val_dataloader', 'val_cfg', 'val_evaluator'),
            ('test_dataloader', 'test_cfg', 'test_evaluator'))


def check_optimizer(settings: dict) -> None:
    """Raise ConfigError if no optimiser has the name that a config gives; MMEngine's is unclear.

    Args:
        settings: The config's ``optim_wrapper``.
    """
    kind = (settings.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        known = {**OPTIMIZERS.parent.module_dict, **OPTIMIZERS.module_dict}
        raise ConfigError(f'optim_wrapper.optimizer.type = {kind!r} is unknown.'
                          + did_you_mean(kind, known))


def check_together(config: Config) -> None:
    """Raise ConfigError if a config has a part of what a loop needs; MMEngine prints all of it."""
    for keys in TOGETHER:
        missing = [key for key in keys if config.get(key) is None]
        if missing and len(missing) < len(keys):
            raise ConfigError(f'config {config.filename}: {", ".join(keys)} belong together, and '
                              f'it has no {", ".join(missing)}. Give all of them, or set all to '
                              f'None.')


def check_default_hooks(hooks: Mapping[str, Any]) -> None:
    """Raise ConfigError for a hook without a type, as a misspelt name on the command line makes.

    Args:
        hooks: The config's ``default_hooks``.
    """
    typed = [name for name, hook in hooks.items() if not isinstance(hook, dict) or 'type' in hook]
    for name in hooks:
        if name not in typed:
            raise ConfigError(f'default_hooks.{name} = {dict(hooks[name])} has no `type`.'
                              + did_you_mean(name, typed))
