"""Record a run of mmcv's runner, and leave its report."""

from __future__ import annotations

import inspect
import os
import os.path as osp
import shlex
import shutil
from glob import escape, glob
from typing import Optional

from mmcv.runner import HOOKS, EvalHook, Hook, LoggerHook
from mmdet.datasets import CocoPanopticDataset

from gkd.compat.wrapper import unwrap
from gkd.files import written_whole
from gkd.recorder import Recorder, first_epoch
from gkd.work_dir import DETECTIONS, REPORT

UNFINISHED = '.detections'


@HOOKS.register_module()
class TrainingRecorder(Hook):
    """Record a run and leave ``WORK_DIR/report.html``.

    What is recorded: :class:`gkd.recorder.Recorder`, brought up to date at the interval of the
    run's loggers. ``WORK_DIR/detections.bbox.json`` gets what the last evaluation detected, as
    COCO results.
    """

    PRIORITY = 'NORMAL'  # after the optimiser's hook, before the loggers

    def __init__(self):
        self.recorder: Optional[Recorder] = None
        self.evaluation: Optional[EvalHook] = None
        self.interval = 50

    def before_run(self, runner) -> None:
        """Begin to watch the model; a resumed run continues its record."""
        self.evaluation = next((hook for hook in runner.hooks if isinstance(hook, EvalHook)), None)
        if runner.rank > 0:
            return
        if self.evaluation is not None:
            keep_results(self.evaluation, osp.join(runner.work_dir, UNFINISHED))
        self.interval = next((hook.interval for hook in runner.hooks
                              if isinstance(hook, LoggerHook)), self.interval)
        model = unwrap(runner.model)
        self.recorder = Recorder(
            model, runner.work_dir, first_epoch(runner), runner.iter,
            runner.meta.get('config', ''), runner.meta.get('seed'), runner.world_size)
        self.recorder.time_calls(model, 'train_step', 'forward', then='backward')
        self.collect_detections(runner)

    def before_train_epoch(self, runner) -> None:
        """The time between two epochs is not spent waiting for data."""
        if runner.rank == 0:
            self.collect_detections(runner)
            self.recorder.pause()

    def before_train_iter(self, runner) -> None:
        """Begin to time the step."""
        if runner.rank == 0:
            self.recorder.begin_step()

    def after_train_iter(self, runner) -> None:
        """Stop timing the step; update the record at the loggers' interval."""
        if runner.rank > 0:
            return
        self.recorder.end_step()
        if self.every_n_iters(runner, self.interval) or self.end_of_epoch(runner) or \
                self.is_last_iter(runner):
            length = len(runner.data_loader) if hasattr(runner, 'data_loader') else None
            self.recorder.update(runner.epoch, length)

    def after_run(self, runner) -> None:
        """Let go of the model and write the report."""
        if runner.rank > 0:
            return
        self.collect_detections(runner)
        self.recorder.close()
        # Imported here: the drawing libraries are needed now, not when a training starts.
        from gkd.report.page import write_report
        path = osp.join(runner.work_dir, REPORT)
        try:
            write_report(runner.work_dir, [], path)
            runner.logger.info(f'Report: {path}')
        except Exception as error:
            # The run is done and its checkpoints are written: it must not end as a failure.
            runner.logger.warning(
                f'{path} could not be written ({type(error).__name__}: {error}). Try again with: '
                f'python -m gkd.report {shlex.quote(runner.work_dir)}')

    def collect_detections(self, runner) -> None:
        """Put in place what an evaluation has written since the last time."""
        prefix = getattr(self.evaluation, 'eval_kwargs', {}).get('jsonfile_prefix')
        source = f'{prefix}.bbox.json'
        kept = osp.join(runner.work_dir, DETECTIONS)
        if prefix is not None and osp.isfile(source) and osp.abspath(source) != kept:
            with open(source, 'rb') as file, written_whole(kept) as copy:
                shutil.copyfileobj(file, copy)
        if prefix == osp.join(runner.work_dir, UNFINISHED):
            for path in glob(f'{escape(prefix)}.*'):  # masks and proposals have their own
                os.remove(path)


def keep_results(evaluation: EvalHook, prefix: str) -> None:
    """Have an evaluation write what was detected as COCO results, if its data set can.

    That of panoptic data would write a folder of images beside them.
    """
    dataset = evaluation.dataloader.dataset
    if not isinstance(dataset, CocoPanopticDataset) and \
            'jsonfile_prefix' in inspect.signature(dataset.evaluate).parameters:
        evaluation.eval_kwargs.setdefault('jsonfile_prefix', prefix)
