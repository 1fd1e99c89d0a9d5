"""Settings that replace those of a config, by dotted name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Optional

from gkd.errors import ConfigError
from gkd.frameworks import Config

DELETE = '_delete_'  # mmcv's and MMEngine's key: what is there is replaced, not changed


def replace_settings(config: Config, settings: Mapping[str, Any], where: str) -> None:
    """Replace settings of a config.

    Args:
        config: The config; changed in place.
        settings: New values by dotted name; numbers count the entries of lists.
        where: Where they are given, such as ``'--cfg-options'``, to begin messages with.

    Raises:
        ConfigError: The config has no such place.
    """
    given = dict(flat(settings))
    for name, value in given.items():
        blocked = place_without_keys(config, name, given)
        if blocked is not None:
            place, found = blocked
            raise ConfigError(
                f'{where}: {name} is a key of {place}, but {place} is {found!r} in the config and '
                f'has no keys. To put a dict there, give both: {place}.{DELETE}=True '
                f'{name}={value}')
    try:
        config.merge_from_dict(dict(settings))
    except Exception as error:  # it walks into lists, dicts and values alike
        raise ConfigError(f'{where} {settings}: {type(error).__name__}: {error}') from None


def flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings with dicts taken apart, by dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat({f'{name}.{key}': inner for key, inner in value.items()})
        else:
            yield name, value


def place_without_keys(config: Config, name: str,
                       given: Mapping[str, Any]) -> Optional[tuple[str, Any]]:
    """The place on the way to a setting that is neither a dict nor a list, and what is there.

    Args:
        config: The config.
        name: Dotted name of the setting.
        given: All settings, flat; places that they replace as a whole do not count.
    """
    place, found = '', config._cfg_dict
    for key in name.split('.'):
        if given.get(f'{place}.{DELETE}'):
            return None
        if not isinstance(found, (dict, list)):
            return place, found
        try:
            found = found[int(key) if isinstance(found, list) else key]
        except (LookupError, ValueError):
            return None
        place = f'{place}.{key}' if place else key
    return None
