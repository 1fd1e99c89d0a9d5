"""What a run shows on the terminal, and what it keeps in its log file."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Optional

from mmcv.runner import Hook, get_dist_info
from mmdet.utils import get_root_logger
from tqdm import tqdm

from gkd.errors import GKDError
from gkd.progress import progress


def open_logger(level: str = 'INFO') -> logging.Logger:
    """MMDetection's logger; on the terminal it leaves out mmcv's list of hooks, fifty lines."""
    logger = get_root_logger(log_level=level)
    logger.setLevel(level if get_dist_info()[0] == 0 else logging.ERROR)
    logger.handlers = [Console.instead_of(handler) if type(handler) is logging.StreamHandler
                       else handler for handler in logger.handlers]
    return logger


class Console(logging.StreamHandler):
    """Writes messages above a terminal's progress bars, and leaves out mmcv's list of hooks."""

    @classmethod
    def instead_of(cls, handler: logging.StreamHandler) -> Console:
        """One with the settings of a handler."""
        console = cls(handler.stream)
        console.setLevel(handler.level)
        console.setFormatter(handler.formatter)
        return console

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a message."""
        return not str(record.msg).startswith('Hooks will be executed') and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        with tqdm.external_write_mode(self.stream) if self.stream.isatty() else nullcontext():
            super().emit(record)


class EpochBar(Hook):
    """Show on a terminal the progress of an epoch, the loss, and the time that is left."""

    # After the hook that resumes inside an epoch, before the one that writes checkpoints.
    PRIORITY = 'VERY_HIGH'

    def __init__(self):
        self.bar: Optional[tqdm] = None

    def before_train_iter(self, runner) -> None:
        """Draw the bar; a resumed epoch does not begin at 0."""
        if self.bar is None:
            self.bar = progress(None, f'epoch {runner.epoch + 1} of {runner.max_epochs}',
                                len(runner.data_loader), 'step', initial=runner.inner_iter)

    def after_train_iter(self, runner) -> None:
        """Advance the bar."""
        bar = self.bar
        bar.update()
        seconds = (time.time() - bar.start_t) / (bar.n - bar.initial)
        left = bar.format_interval(seconds * (runner.max_iters - runner.iter - 1))
        loss = runner.outputs['log_vars'].get('loss', math.nan)
        bar.set_postfix_str(f'loss {loss:.4g}, run ends in {left}', refresh=False)

    def after_train_epoch(self, runner) -> None:
        """Take the bar away."""
        if self.bar is not None:  # a run may resume from the last iteration of an epoch
            self.bar.close()
        self.bar = None


@contextmanager
def log_file(logger: logging.Logger, path: str) -> Iterator[None]:
    """Write all messages of a logger, and the traceback of an unforeseen exception, to a file too.

    Only the first process writes. mmcv's own logger would keep writing to the file of a process's
    first run, and so mix up the runs of a notebook.

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
