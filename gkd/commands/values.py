"""Settings whose values mmcv or MMEngine would only meet in the middle of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gkd.errors import ConfigError, require_count


def setting(config: Any, key: str) -> Any:
    """The value of a setting, None where the config has none.

    Args:
        config: A config of either MMDetection, or a dict.
        key: Dotted name of the setting.

    Example:
        >>> setting(dict(data=dict(train=dict(times=2))), 'data.train.times'), setting({}, 'a.b')
        (2, None)
    """
    first, _, rest = key.partition('.')
    value = config.get(first)
    if not rest:
        return value
    return setting(value, rest) if isinstance(value, dict) else None


def check_dicts(config: Any, keys: Iterable[str]) -> None:
    """Raise ConfigError for settings, by their dotted names, that are there and are no dicts."""
    for key in keys:
        value = setting(config, key)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f'{key} = {value!r}: must be a dict.')


def check_counts(config: Any, least: Mapping[str, int]) -> None:
    """Raise ConfigError for settings that are there and are no whole numbers, or too small.

    Args:
        config: A config of either MMDetection.
        least: The smallest value of each, by the setting's dotted name.
    """
    for key, smallest in least.items():
        value = setting(config, key)
        if value is not None:
            require_count(value, key, smallest)


def check_scaling(config: Any) -> None:
    """Raise ConfigError if the learning rate is to be scaled, and nothing says from what."""
    if setting(config, 'auto_scale_lr.enable') and not setting(config,
                                                               'auto_scale_lr.base_batch_size'):
        raise ConfigError('auto_scale_lr.enable = True (or --auto-scale-lr): the config does not '
                          'say for how many images per step its learning rate is. Add '
                          'auto_scale_lr = dict(enable=True, base_batch_size=16).')
