"""Whether settings fit the arguments that they are for, before anything computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from gkd.errors import ConfigError

# What people call the types that a config can hold.
NAMES = {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'text',
         Mapping: 'a dict', Sequence: 'a list', type(None): 'None'}


def check_types(annotated: Union[type, Callable], settings: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError for the first setting that an argument's annotation does not allow.

    Weights must not be negative, either: a loss with such a weight would teach the opposite.

    Args:
        annotated: A function, or a class with annotated fields.
        settings: Values of its arguments. Others are ignored.
        key: Place of the settings in the config, for messages.

    Example:
        >>> def cut(image: list, scale: float = 1.0): ...
        >>> check_types(cut, dict(scale=2), 'model.cut')
        >>> check_types(cut, dict(scale='2x'), 'model.cut')
        Traceback (most recent call last):
        gkd.errors.ConfigError: model.cut.scale = '2x': must be a finite number.
    """
    hints = annotations(annotated)
    for name, value in settings.items():
        kind = hints.get(name, Any)
        if not fits(value, kind):
            raise ConfigError(f'{key}.{name} = {value!r}: must be {in_words(kind)}.')
        if name.endswith('weight') and isinstance(value, Real) and value < 0:
            raise ConfigError(f'{key}.{name} = {value!r}: must be at least 0.')


def annotations(annotated: Union[type, Callable]) -> dict[str, Any]:
    """Types of arguments by name; none if they cannot be read, as a user's own may not."""
    try:
        return get_type_hints(annotated, localns=dict(DetectorPair=Any))  # imported nowhere
    except (NameError, TypeError, AttributeError):
        return {}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; types that no config can hold take any.

    Example:
        >>> fits(1, float), fits(True, float), fits((0, 1), Sequence[int]), fits('01', Sequence)
        (True, False, True, False)
    """
    kind, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Union:
        return any(fits(value, one) for one in inner)
    if kind is float:
        return is_a(value, Real) and math.isfinite(value)
    if kind is int:
        return is_a(value, Integral)
    if kind in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(
            fits(entry, one) for entry in value for one in inner[:1])
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    return kind not in NAMES or isinstance(value, kind)


def is_a(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def in_words(kind: Any) -> str:
    """A type as messages name it.

    Example:
        >>> in_words(Union[Sequence[int], Mapping, None])
        'a list of whole numbers, a dict or None'
    """
    kind, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Union:
        *first, last = map(in_words, inner)
        return f'{", ".join(first)} or {last}'
    kind = {list: Sequence, tuple: Sequence, dict: Mapping}.get(kind, kind)
    if kind is Sequence and inner:
        return f'a list of {in_words(inner[0])}'.replace('of a whole number', 'of whole numbers')
    return NAMES[kind]
