"""Watch calls of an object's method from outside, while a block runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable


@contextmanager
def watched(owner: object, name: str, call: Callable) -> Iterator[None]:
    """Have ``call(method, *args, **kwargs)`` stand for the method ``owner.name``.

    Args:
        owner: The object whose method is replaced; its class stays untouched.
        name: Name of the method.
        call: Gets the method itself and the arguments of every call; what it returns is returned.

    Example:
        >>> text = type('Text', (), dict(read=lambda self: 'read'))()
        >>> with watched(text, 'read', lambda method: method().upper()):
        ...     text.read()
        'READ'
        >>> text.read()
        'read'
    """
    method = getattr(owner, name)
    outer = vars(owner).get(name)
    setattr(owner, name, functools.partial(call, method))
    try:
        yield
    finally:
        if outer is None:
            delattr(owner, name)
        else:
            setattr(owner, name, outer)
