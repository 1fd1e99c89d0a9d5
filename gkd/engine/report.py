"""The report of a training, under MMEngine."""

from __future__ import annotations

import os.path as osp
import subprocess
import sys

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from gkd.work_dir import DETECTIONS, REPORT


@HOOKS.register_module()
class ReportHook(Hook):
    """Leave ``WORK_DIR/report.html`` when a training ends.

    COCO's metric keeps what the last evaluation detected, for the report to draw. No further
    detector is run for it.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner) -> None:
        """Let metrics that write their detections to a file write them to the work dir."""
        if runner.val_loop is None:
            return
        for metric in runner.val_loop.evaluator.metrics:
            if getattr(metric, 'outfile_prefix', '') is None:
                metric.outfile_prefix = osp.join(runner.work_dir,
                                                 DETECTIONS.partition('.')[0])

    def after_train(self, runner) -> None:
        """Write the report, in a process of its own: what it needs is slow to import."""
        if runner.rank > 0:
            return
        ended = subprocess.run([sys.executable, '-m', 'gkd.report', '--no-detect',
                                runner.work_dir],
                               capture_output=True, text=True)
        if ended.returncode == 0:
            runner.logger.info(f'Report: {osp.join(runner.work_dir, REPORT)}')
        else:
            # The run is done and its checkpoints are written: it must not end as a failure.
            runner.logger.warning(f'No report could be written. {ended.stderr.strip()} Try again '
                                  f'with: python -m gkd.report {runner.work_dir}')
