"""A patch of mmcv's progress bars."""

from __future__ import annotations

import io
from typing import Any

import mmcv.utils.progressbar

from gkd.progress import progress


def draw_bars_on_terminals_only() -> None:
    """Let mmcv's progress bars, which mmdet draws while it detects, be those of gkd.

    Reason: they write a line with a carriage return for every image, also into files.
    For: mmcv 1.x.
    """
    for module in (mmcv, mmcv.utils, mmcv.utils.progressbar):
        module.ProgressBar = ProgressBar


class ProgressBar:
    """mmcv's interface to a bar.

    Args:
        task_num: Number of items; 0 if it is not known.
        **settings: Further settings of mmcv; they have no effect here.
    """

    def __init__(self, task_num: int = 0, *args: Any, **settings: Any):
        self.task_num = task_num
        self.completed = 0
        self.file = io.StringIO()  # callers end the bar's line in it
        # mmdet does not say what it does; nearly always it detects.
        self.bar = progress(None, 'detecting', task_num or None)

    def start(self) -> None:
        """Do nothing: it has started."""

    def update(self, num_tasks: int = 1) -> None:
        """Count items; several processes count those that fill up their last batches, too."""
        known = self.task_num or float('inf')
        done = min(self.completed + num_tasks, known)
        self.bar.update(done - self.completed)
        self.completed = done
        if done == known:
            self.bar.close()
