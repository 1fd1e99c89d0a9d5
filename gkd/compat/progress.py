"""A patch of the progress bars of mmcv 1.x, and of MMEngine, which took them over."""

from __future__ import annotations

import io
from typing import Any

from gkd.installed import mmdet_major
from gkd.progress import progress

# What is done nearly always while a bar is drawn; mmdet does not say it.
WORK = {2: 'detecting', 3: 'reading annotations'}[mmdet_major()]


def draw_bars_on_terminals_only(kind: type) -> None:
    """Let the progress bars that mmdet draws be those of gkd.

    Reason: they write a line with a carriage return for every item, also into files, and those of
    some data sets never end it: what a command prints next stood in the same line.
    For: mmcv 1.x, mmengine 0.x.

    Args:
        kind: Their ``ProgressBar``; in place, as modules have imported it by its name.
    """
    for name in ('__init__', 'start', 'update'):
        setattr(kind, name, vars(ProgressBar)[name])


class ProgressBar:
    """Their interface to a bar.

    Args:
        task_num: Number of items; 0 if it is not known.
        **settings: Further ones of mmcv or MMEngine; they have no effect here.
    """

    def __init__(self, task_num: int = 0, *args: Any, **settings: Any):
        self.task_num = task_num
        self.completed = 0
        self.file = io.StringIO()  # callers end the bar's line in it
        self.bar = progress(None, WORK, task_num or None)

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
