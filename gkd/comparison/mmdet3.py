"""Stages of a comparison with MMDetection 3."""

from __future__ import annotations

import json
import os.path as osp
from glob import escape, glob
from typing import Optional

from gkd.commands.processes import StageFailed, how_it_ended, run_tool
from gkd.comparison import stages
from gkd.comparison.degrees import aps_by_degree, degree_columns
from gkd.comparison.last import check_last_checkpoint
from gkd.comparison.methods import without_methods
from gkd.comparison.plan import Comparison, Planner
from gkd.comparison.stages import Testing, percent, read
from gkd.compat.coco import InspectedCOCO
from gkd.datasets.coco_eval import by_coco_names
from gkd.detectors.entries import name_of
from gkd.errors import ConfigError, DataError
from gkd.files import write_atomically
from gkd.frameworks import Config, ConfigDict
from gkd.planning.door import schedule_of
from gkd.progress import silence
from gkd.report.runs import Run, read_run
from gkd.work_dir import DETECTIONS, EVALUATION, without_prefixes

__all__ = ['StagePlanner', 'validation_data']


class Training(stages.Training):
    """Train one detector with MMDetection 3."""

    tool = 'mmdet3/train.py'

    def history(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch, or by iteration if it counts those."""
        found = self.left()
        return {} if found is None else {str(epoch): metrics
                                         for epoch, metrics in found.evaluations.items()}

    def lines(self) -> list[dict]:
        """Lines of its log."""
        found = self.left()
        return [] if found is None else found.lines

    def left(self) -> Optional[Run]:
        """What the training has left; None before its first step."""
        try:
            return read_run(self.work_dir)
        except DataError:
            return None

    def complete(self) -> bool:
        """Whether its work dir holds all that it should leave."""
        return super().complete() and osp.isfile(self.checkpoint)


class Evaluation(Testing):
    """Measure a detector's AP on the validation data, and keep its detections as COCO results."""

    file = EVALUATION

    def run(self, environment: Optional[dict] = None, log: Optional[str] = None,
            lock: Optional[int] = None) -> None:
        """Test; the arguments are those of a training.

        Raises:
            StageFailed: It ended with an error, or without metrics.
        """
        status, _ = run_tool(['mmdet3/test.py', self.config, self.checkpoint, '--work-dir',
                              self.folder], environment, log, lock)
        # MMEngine names the file, and the folder that it lies in, by the time.
        written = sorted(glob(osp.join(escape(self.folder), '*', '*.json')))
        if status or not written:
            raise StageFailed(f'testing {self.checkpoint} '
                              f'{how_it_ended(status) if status else "left no metrics"}, see '
                              f'{log or "above"}.')
        write_atomically(self.output, read(written[-1]))

    def values(self, comparison: Comparison) -> dict[str, float]:
        """APs over all objects, in percent, and those by degree if the data carry degrees."""
        values = percent(by_coco_names(without_prefixes(json.loads(read(self.output)))))
        if comparison.columns:
            values.update(aps_by_degree(comparison.dataset, json.loads(
                read(osp.join(self.folder, DETECTIONS)))))
        return values


class StagePlanner(Planner):
    """Plans trainings and tests with MMDetection 3."""

    kind = Training
    tests_coco_only = False

    def last_checkpoint(self, settings: Config) -> str:
        """Name of the last checkpoint; MMEngine evaluates the end whatever the interval.

        Raises:
            ConfigError: The config does not say how long it trains, or its end would not be
                evaluated, or not kept under this name.
        """
        schedule = schedule_of(settings)
        begin = settings.train_cfg.get('val_begin', 1)
        if begin > schedule.length:
            raise ConfigError(
                f'{settings.filename}: train_cfg.val_begin = {begin}, and {schedule.unit} '
                f'{schedule.length} is the last: it would not be evaluated, and a comparison '
                f'compares what is measured there.')
        if any(name_of(hook.get('type')) == 'EarlyStoppingHook'
               for hook in settings.get('custom_hooks') or ()):
            raise ConfigError(
                f'{settings.filename}: custom_hooks has an EarlyStoppingHook, which ends each '
                f'training at another {schedule.unit}; a comparison compares after as many steps. '
                f'Leave it out.')
        by_epoch = schedule.unit == 'epoch'
        hook = settings.get('default_hooks', {}).get('checkpoint', {})
        check_last_checkpoint(
            None if hook is None else {'by_epoch': True, **hook},
            f'{settings.filename}: default_hooks.checkpoint',
            dict(by_epoch=by_epoch, save_last=True, out_dir=None, filename_tmpl=None))
        return f'{"epoch" if by_epoch else "iter"}_{schedule.length}.pth'

    def test(self, role: str, checkpoint: str, folder: str) -> Evaluation:
        """The test of a checkpoint on the validation data."""
        config = without_methods(self.config)
        config.model = self.sources[role].model_config()
        evaluator = coco_evaluator(config)
        if evaluator is not None:
            evaluator.outfile_prefix = osp.join(folder, DETECTIONS[:-len('.bbox.json')])
        for part in ('dataloader', 'evaluator'):
            config[f'test_{part}'] = config[f'val_{part}']
        config.test_cfg = dict(type='TestLoop')
        return Evaluation(self.add(f'test_{osp.basename(folder)}', config), checkpoint, folder)


def coco_evaluator(config: Config) -> Optional[ConfigDict]:
    """The part of ``val_evaluator`` that reads COCO annotations, None if there is none."""
    evaluators = config.val_evaluator
    return next((evaluator for evaluator in
                 (evaluators if isinstance(evaluators, (list, tuple)) else [evaluators])
                 if name_of(evaluator.get('type')) == 'CocoMetric'
                 and evaluator.get('ann_file')), None)


def validation_data(config: Config) -> tuple[Optional[InspectedCOCO], list[str]]:
    """The annotations that APs are measured by, and the degrees that they carry, by name.

    None and no degrees if they are not in COCO's format.

    Raises:
        DataError: They cannot be read.
    """
    evaluator = coco_evaluator(config)
    if evaluator is None:
        return None, []
    try:
        with silence():  # pycocotools reports every step
            coco = InspectedCOCO(evaluator.ann_file)
    except DataError as error:
        raise DataError(f'val_evaluator.ann_file: {error}') from None
    return coco, degree_columns(coco)
