"""What a trial of the evaluation says of the part that fails: data, detector or metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gkd.commands.explain import lost_another_process, place_of, shown
from gkd.errors import ConfigError, GKDError


@contextmanager
def trying(key: str, part: str, advice: str) -> Iterator[None]:
    """Turn what fails in a part of the trial into a ConfigError that names the part.

    That another process has ended is no fault of the config.

    Args:
        key: The place in the config that the part depends on.
        part: What is done with the two images.
        advice: What to look at, and how to do without the evaluation.

    Example:
        >>> with trying('model', 'detecting in them', 'Look at `model`.'):
        ...     1 / 0
        Traceback (most recent call last):
        gkd.errors.ConfigError: model: a trial with two images fails, so that the evaluation would,
        in detecting in them: ZeroDivisionError: division by zero
        It happened in <doctest ...>:2, <module>. Look at `model`.
    """
    try:
        yield
    except GKDError:
        raise
    except Exception as error:
        if lost_another_process(error):
            raise
        raise ConfigError(
            f'{key}: a trial with two images fails, so that the evaluation would, in {part}: '
            f'{type(error).__name__}: {shown(error)}\nIt happened in {place_of(error)}. {advice}'
            .rstrip()) from error
