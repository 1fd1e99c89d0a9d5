"""A patch of the text that mmcv and MMEngine write of a config."""

from __future__ import annotations

import copy
import math
from keyword import iskeyword
from pathlib import PurePath
from typing import Any

from gkd.errors import ConfigError
from gkd.frameworks import Config, ConfigDict


def write_readable_configs() -> None:
    """Let the text of a config be Python that gives the same values again.

    Reason: a training keeps this text and ends where it is no Python. mmcv puts text between
    quotes as it is, with the quotes and backslashes of a path in it; both do so with keys, and
    write an infinite number as ``inf`` and what a config imports as ``<class ...>``.
    For: mmcv 1.x and mmengine 0.x.
    """
    original = Config.pretty_text.fget

    def pretty_text(self: Config) -> str:
        values = {key: value for key, value in self.to_dict().items()
                  if not isinstance(value, type)}  # such as Path, which the file imports
        readable_config = copy.copy(self)
        # Both make a setting of any attribute.
        object.__setattr__(readable_config, '_cfg_dict', ConfigDict(readable(values)))
        return original(readable_config)

    Config.pretty_text = property(pretty_text)


def readable(value: Any, key: str = '') -> Any:
    """A value of a config whose text Python can read.

    Args:
        value: A value, or a dict, list or tuple of values.
        key: Its dotted name, for messages.

    Raises:
        ConfigError: A value is an object that has no such text.
    """
    if isinstance(value, dict):
        return {readable(name): readable(inner, f'{key}.{name}'.lstrip('.'))
                for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(readable(inner, key) for inner in value)
    if isinstance(value, (str, PurePath)):
        return Text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return NotFinite(value)
    if repr(value).startswith('<'):
        raise ConfigError(f'{key} = {value!r} cannot be kept as text, as a training keeps its '
                          f'config: name a class by the text of its registered name, and give '
                          f'numbers, text, lists, tuples and dicts for anything else.')
    return value


class Text(str):
    r"""Text that can stand between the single quotes that are put around it.

    As a key it is put between quotes where Python reads the word as one of its own.

    Example:
        >>> text = Text('''it's "one"''')
        >>> print(f"'{text}'", Text('class').isidentifier())
        'it\'s "one"' False
    """

    def __str__(self) -> str:
        return self

    def isidentifier(self) -> bool:
        return super().isidentifier() and not iskeyword(self)

    def __format__(self, form: str) -> str:
        # The double quote in front makes Python choose single ones.
        return repr('"' + self)[2:-1]


class NotFinite(float):
    """An infinite number, or none.

    Example:
        >>> str(NotFinite('inf')), f"{[NotFinite('nan')]}"
        ("float('inf')", "[float('nan')]")
    """

    def __repr__(self) -> str:
        return f"float('{float(self)}')"
