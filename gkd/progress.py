"""How far long work has come: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Optional

from tqdm import tqdm

from gkd.frameworks import get_dist_info, logger

PAUSE = 60  # seconds between two lines in a log, and before the first


def progress(iterable: Optional[Iterable] = None, description: str = '',
             total: Optional[int] = None, unit: str = 'image', **settings: Any) -> tqdm:
    """Show how far work has come, at which rate, and how long it will go on.

    On a terminal a bar is drawn, which goes away at the end. Elsewhere the log gets a line a
    minute, and nothing of work that takes less. Of several processes only the first one shows it.

    Args:
        iterable: What to go through; None to call ``update`` by hand.
        description: What is done.
        total: Number of items, where ``len(iterable)`` does not tell.
        unit: What an item is, in the singular.
        **settings: Further ones of ``tqdm``.

    Returns:
        A ``tqdm`` around ``iterable``.

    Example:
        >>> list(progress('abc', 'spelling', unit='letter'))
        ['a', 'b', 'c']
    """
    kind = Bar if on_terminal() else LogLines
    return kind(iterable, description, total, unit=unit, **{
        'leave': False, 'disable': get_dist_info()[0] > 0, **kind.PACE, **settings})


def on_terminal() -> bool:
    """Whether somebody is watching."""
    return sys.stderr.isatty()


@contextmanager
def silence() -> Iterator[None]:
    """Drop what is printed to standard output: progress bars, the chatter of pycocotools."""
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def without_details() -> Iterator[None]:
    """Log only warnings: MMDetection would log how every single parameter was initialised."""
    with _logging_above(logging.INFO):
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Drop what is logged as a warning or less, such as that weights are untrained."""
    with _logging_above(logging.WARNING):
        yield


@contextmanager
def without_log() -> Iterator[None]:
    """Drop everything that is logged: a trial's results mean nothing."""
    with _logging_above(logging.CRITICAL):
        yield


def say(text: str) -> None:
    """Print a line above the bars."""
    with tqdm.external_write_mode():
        print(text, flush=True)


class Bar(tqdm):
    """A bar on a terminal."""

    PACE = dict(dynamic_ncols=True, miniters=1)
    # No thread that looks after slow bars: it would be there when processes are forked.
    monitor_interval = 0


class LogLines(tqdm):
    """Lines in the log where a terminal would have a bar."""

    PACE = dict(mininterval=PAUSE, delay=PAUSE, miniters=1, smoothing=0, bar_format=(
        '{desc}: {n_fmt} of {total_fmt} ({rate_fmt}) in {elapsed}, {remaining} left'))
    monitor_interval = 0

    def display(self, msg: Optional[str] = None, pos: Optional[int] = None) -> bool:
        """Log the line; tqdm's other messages clear a terminal."""
        if msg is None:
            logger().info(str(self))
        return False

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: there is nothing to be cleared."""


@contextmanager
def _logging_above(level: int) -> Iterator[None]:
    before = logging.root.manager.disable
    _disable(max(before, level))
    try:
        yield
    finally:
        _disable(before)


def _disable(level: int) -> None:
    logging.disable(level)
    # MMEngine's loggers keep whether a level is on, and forget it only when theirs is set.
    logger().setLevel(logger().level)
