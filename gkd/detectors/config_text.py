"""Read a config's text, as logs and checkpoints keep it, without running it: they are data."""

from __future__ import annotations

import ast
from typing import Any

__all__ = ['parsed']

# What the text of a config calls besides `dict`: the numbers of the GPUs, infinite numbers.
CALLED = {'range': range, 'float': float}


def parsed(text: str) -> dict[str, Any]:
    """The settings at the top of a config's text.

    Args:
        text: As ``pretty_text`` of mmcv or MMEngine writes it.

    Raises:
        ValueError: It is no Python, or holds anything else than values with names.

    Example:
        >>> parsed('a = dict(b=[1, -2.5], c=range(0, 2), d=(1, 2))')
        {'a': {'b': [1, -2.5], 'c': range(0, 2), 'd': (1, 2)}}
    """
    try:
        return {target.id: value_of(statement.value) for statement in ast.parse(text).body
                for target in statement.targets}
    except (SyntaxError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f'it holds more than settings with values ({error})') from error


def value_of(node: ast.expr) -> Any:
    """The value of an expression of constants, lists, tuples and dicts.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict':
        return {key: value for part in (*map(value_of, node.args), *map(named, node.keywords))
                for key, value in part.items()}
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) in CALLED:
        return CALLED[node.func.id](*map(value_of, node.args))
    if isinstance(node, ast.Dict):
        return {value_of(key): value_of(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        kind = list if isinstance(node, ast.List) else tuple
        return kind(map(value_of, node.elts))
    return ast.literal_eval(node)


def named(keyword: ast.keyword) -> dict[str, Any]:
    """A value with its name, or those of a ``**dict``."""
    value = value_of(keyword.value)
    return value if keyword.arg is None else {keyword.arg: value}
