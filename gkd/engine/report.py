"""The report of a training, under MMEngine."""

from __future__ import annotations

import os.path as osp
import shlex
import subprocess
import sys
from typing import Any, Optional

from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from gkd.commands.processes import how_it_ended
from gkd.compat.wrapper import unwrap
from gkd.engine.trial import metrics_of
from gkd.recorder import Recorder, first_epoch
from gkd.work_dir import DETECTIONS, REPORT


@HOOKS.register_module()
class ReportHook(Hook):
    """Record a run and leave ``WORK_DIR/report.html`` when it ends.

    What is recorded: :class:`gkd.recorder.Recorder`, brought up to date at the interval of the
    run's logger. COCO's metric keeps what the last evaluation detected, for the report to draw. No
    further detector is run for it.
    """

    # What hooks between two steps do counts as waiting for data, as in MMEngine's log.
    priority = 'NORMAL'

    def __init__(self):
        self.recorder: Optional[Recorder] = None
        self.interval = 50

    def before_train(self, runner) -> None:
        """Begin to watch the model, and let metrics write their detections to the work dir."""
        keep_detections(runner)
        if runner.rank > 0:
            return
        self.interval = next((hook.interval for hook in runner.hooks
                              if isinstance(hook, LoggerHook)), self.interval)
        self.recorder = Recorder(unwrap(runner.model), runner.work_dir, first_epoch(runner),
                                 runner.iter, runner.cfg.pretty_text, runner.seed,
                                 runner.world_size)
        self.recorder.time_calls(runner.optim_wrapper, 'update_params', 'backward')

    def before_train_epoch(self, runner) -> None:
        """The time between two epochs is not spent waiting for data."""
        if runner.rank == 0:
            self.recorder.pause()

    def before_val(self, runner) -> None:
        """Nor is that of an evaluation inside of an epoch."""
        if self.recorder is not None:
            self.recorder.pause()

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to time the step."""
        if runner.rank == 0:
            self.recorder.begin_step()

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Stop timing the step; update the record at the logger's interval."""
        if runner.rank > 0:
            return
        self.recorder.end_step()
        if self.every_n_train_iters(runner, self.interval):
            self.update(runner)

    def after_train_epoch(self, runner) -> None:
        """Complete the epoch's record."""
        if runner.rank == 0:
            self.update(runner)

    def update(self, runner) -> None:
        """Bring the record up to date."""
        self.recorder.update(runner.epoch, len(runner.train_dataloader))

    def after_train(self, runner) -> None:
        """Write the report, in a process of its own: what it needs is slow to import."""
        if runner.rank > 0:
            return
        self.recorder.close()
        problem = report(runner.work_dir)
        if problem is None:
            runner.logger.info(f'Report: {osp.join(runner.work_dir, REPORT)}')
        else:
            # The run is done and its checkpoints are written: it must not end as a failure.
            runner.logger.warning(f'No report could be written. {problem} Try again with: '
                                  f'python -m gkd.report {shlex.quote(runner.work_dir)}')


def report(work_dir: str) -> Optional[str]:
    """Write the report of a run in a process of its own; what went wrong, None if nothing did."""
    try:
        ended = subprocess.run([sys.executable, '-m', 'gkd.report', '--no-detect', work_dir],
                               capture_output=True, text=True, errors='replace')
    except OSError as error:  # there may be no memory for it
        return f'{error}.'
    if ended.returncode == 0:
        return None
    return ended.stderr.strip() or f'It {how_it_ended(ended.returncode)}.'


def keep_detections(runner) -> None:
    """Let metrics that can keep what is detected write it to the work dir."""
    if runner.val_loop is None:
        return
    for metric in metrics_of(runner.val_loop.evaluator):
        if getattr(metric, 'outfile_prefix', '') is None:
            metric.outfile_prefix = osp.join(runner.work_dir, DETECTIONS.partition('.')[0])
