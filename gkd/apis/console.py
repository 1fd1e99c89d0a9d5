"""What a run shows on the terminal, and what it keeps in its log file."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mmcv.runner import get_dist_info
from mmdet.utils import get_root_logger

from gkd.errors import GKDError


def open_logger(level: str = 'INFO') -> logging.Logger:
    """MMDetection's logger; on the terminal without mmcv's list of hooks, fifty lines a run."""
    logger = get_root_logger(log_level=level)
    logger.setLevel(level if get_dist_info()[0] == 0 else logging.ERROR)
    for handler in logger.handlers:
        handler.addFilter(is_news)
    return logger


def is_news(record: logging.LogRecord) -> bool:
    """Whether a message tells the user something about this very run."""
    return not str(record.msg).startswith('Hooks will be executed')


@contextmanager
def log_file(logger: logging.Logger, path: str) -> Iterator[None]:
    """Write all messages of a logger to a file as well, on the first process.

    So is the traceback of an exception that nobody has foreseen.

    mmcv's own logger keeps the file of the first run of a process, and so mixes up the runs of a
    notebook.

    Args:
        logger: The logger.
        path: The file.
    """
    if get_dist_info()[0] > 0:
        yield
        return
    handler = logging.FileHandler(path, encoding='utf-8')
    handler.setFormatter(logging.Formatter('%(asctime)s - %(name)s - %(levelname)s - %(message)s'))
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        if not isinstance(error, GKDError):
            handler.stream.write(traceback.format_exc())
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def without_details() -> Iterator[None]:
    """Let warnings through only: mmcv tells of every parameter how it was initialised."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)
