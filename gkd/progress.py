"""How far long work has come: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Optional, TextIO

from tqdm import tqdm

from gkd.frameworks import get_dist_info, logger

PAUSE = 60  # seconds between two lines in a log, and before the first
# Held while standard output or the level of the log is exchanged: threads may do so at once.
EXCHANGE = threading.Lock()


def progress(iterable: Optional[Iterable] = None, description: str = '',
             total: Optional[int] = None, unit: str = 'image', **settings: Any) -> tqdm:
    """Show the progress of work, its rate, and the time that is left.

    On a terminal a bar is drawn, which goes away at the end. Elsewhere the log gets a line a
    minute, and nothing of work that takes less. Of several processes only the first one shows it.

    Args:
        iterable: What to go through; None to call ``update`` by hand.
        description: What is done.
        total: Number of items, if ``len(iterable)`` is not known.
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
    """Drop what this thread prints to standard output: bars, the chatter of pycocotools."""
    thread = threading.get_ident()
    with EXCHANGE:
        if not isinstance(sys.stdout, _Heard):
            sys.stdout = _Heard(sys.stdout)
        heard = sys.stdout
        heard.silent[thread] += 1
    try:
        yield
    finally:
        with EXCHANGE:
            heard.silent[thread] -= 1
            if not any(heard.silent.values()) and sys.stdout is heard:
                sys.stdout = heard.stream


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


class _Heard:
    """Standard output without what threads print that are silent."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.silent: Counter = Counter()  # blocks that are open, by thread

    def write(self, text: str) -> int:
        if not self.silent[threading.get_ident()]:
            self.stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


# Levels up to which nothing is logged: of every block that is open, and first that outside.
_dropped: list[int] = []


@contextmanager
def _logging_above(level: int) -> Iterator[None]:
    with EXCHANGE:
        if not _dropped:
            _dropped.append(logging.root.manager.disable)
        _dropped.append(level)
        _disable(max(_dropped))
    try:
        yield
    finally:
        with EXCHANGE:
            _dropped.remove(level)
            _disable(max(_dropped))
            if len(_dropped) == 1:
                _dropped.clear()


def _disable(level: int) -> None:
    logging.disable(level)
    # MMEngine's loggers keep whether a level is on, and forget it only when theirs is set.
    logger().setLevel(logger().level)
