"""Find one's way in a config: the dicts in it, and the classes that they name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gkd.frameworks import ConfigDict


def place_of(kind: Any) -> str:
    """Where a class is that a config names by its place or holds; empty for other values."""
    if isinstance(kind, type):
        return f'{kind.__module__}.{kind.__qualname__}'
    return kind if isinstance(kind, str) else ''


def name_of(kind: Any) -> str:
    """Name of a class that a config names, with or without its place, or holds.

    Example:
        >>> name_of('gkd.distiller.Distiller'), name_of(dict), name_of(None)
        ('Distiller', 'dict', '')
    """
    return place_of(kind).rpartition('.')[2]


def nested(entry: Any) -> Iterator[ConfigDict]:
    """All dicts inside a config, at every depth."""
    for _, inner in placed(entry, ''):
        yield inner


def placed(entry: Any, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """All dicts inside a config, at every depth, each with its place.

    Args:
        entry: The config or a part of it.
        key: Its place.

    Example:
        >>> [place for place, _ in placed(dict(train=[dict(type='CocoDataset')]), 'data')]
        ['data', 'data.train.0']
    """
    if isinstance(entry, dict):
        yield key, entry
    for name, inner in entry.items() if isinstance(entry, dict) else enumerate(entry):
        if isinstance(inner, (dict, list, tuple)):
            yield from placed(inner, f'{key}.{name}')
