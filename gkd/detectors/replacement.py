"""Settings that replace those of a config, by dotted name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Optional

from gkd.errors import ConfigError, did_you_mean, shorten
from gkd.frameworks import KEYS_READ, TOP_LEVEL, Config, logger

DELETE = '_delete_'  # mmcv's and MMEngine's key: what is there is replaced, not changed


def apply_options(config: Config, options: Optional[Mapping[str, Any]]) -> None:
    """Replace settings of a whole config by those of ``--cfg-options``.

    A variable of the config file, such as ``data_root``, can be replaced without effect: what was
    made of it stays. The log says so.

    Args:
        config: The config; changed in place.
        options: New values by dotted name; None for none.

    Raises:
        ConfigError: The config has no such place, or nothing reads it.
    """
    for name in options or {}:
        first, _, rest = name.partition('.')
        if first in TOP_LEVEL:
            check_key(config, name)
            continue
        if first in config:
            logger().warning(
                f'--cfg-options {name}: `{first}` is a variable of the config file; what the file '
                f'made of it stays as it was. Set that by its own name.')
            continue
        known = {*TOP_LEVEL, *config}
        meant = [*places_of(config._cfg_dict, first)] or get_close_matches(first, known, 1)
        advice = f' Did you mean {shorten([join(place, rest) for place in meant], 4)}?'
        raise ConfigError(f'--cfg-options: {name}: nothing reads a setting `{first}` at the top '
                          f'of a config, so that it would have no effect.'
                          + advice * bool(meant))
    replace_settings(config, options or {}, '--cfg-options')


def check_key(config: Config, name: str) -> None:
    """Raise ConfigError if nothing reads the second part of a setting's dotted name."""
    first, *rest = name.split('.')
    read = KEYS_READ.get(first)
    if not read or not rest or rest[0] in (*read, *(config.get(first) or {}), DELETE):
        return
    raise ConfigError(f'--cfg-options: {name}: nothing reads a setting `{rest[0]}` of `{first}`, '
                      f'so that it would have no effect. It takes {", ".join(read)}.'
                      + did_you_mean(rest[0], read))


def places_of(entry: Any, key: str, place: str = '') -> Iterator[str]:
    """Dotted names of all places in a config that have a key.

    Example:
        >>> [*places_of(dict(model=dict(knowledge=[]), other=[dict(knowledge=1)]), 'knowledge')]
        ['model.knowledge', 'other.0.knowledge']
    """
    inner = entry.items() if isinstance(entry, dict) else (
        enumerate(entry) if isinstance(entry, (list, tuple)) else ())
    for name, value in inner:
        if name == key:
            yield join(place, name)
        yield from places_of(value, key, join(place, str(name)))


def join(*parts: str) -> str:
    """A dotted name of parts, some of which may be empty."""
    return '.'.join(filter(None, parts))


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
            if isinstance(found, list):
                raise ConfigError(
                    f'{where}: {name} is no place in {place}, which is a list of {len(found)} in '
                    f'the config. Name one of its entries by number, from 0 on, as in {place}.0')
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
    """The place on the way to a setting that cannot have such a key, and what is there.

    It is neither a dict nor a list, or a list without this entry.

    Args:
        config: The config.
        name: Dotted name of the setting.
        given: All settings, flat; places that they replace as a whole do not count.
    """
    place, found = '', config._cfg_dict
    for key in name.split('.'):
        if given.get(f'{place}.{DELETE}') or place in given:
            return None
        try:
            found = found[int(key) if isinstance(found, list) else key]
        except (LookupError, ValueError, TypeError):
            return None if isinstance(found, dict) else (place, found)
        place = f'{place}.{key}' if place else key
    return None
