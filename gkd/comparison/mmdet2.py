"""Stages of a comparison with MMDetection 2."""

from __future__ import annotations

import json
import os
import os.path as osp
from typing import Optional

from mmcv import Config
from mmdet.datasets import CocoDataset

from gkd.commands.processes import StageFailed, cfg_option, how_it_ended, run_tool
from gkd.comparison import stages
from gkd.comparison.degrees import aps_by_degree, degree_columns
from gkd.comparison.last import check_last_checkpoint
from gkd.comparison.methods import without_methods
from gkd.comparison.plan import Comparison, Planner
from gkd.comparison.stages import Testing, percent, read
from gkd.datasets.coco_eval import evaluate, metrics_of
from gkd.errors import ConfigError
from gkd.planning.door import schedule_of
from gkd.progress import silence
from gkd.report.logs import read_log
from gkd.running.data import build_checked_dataset
from gkd.work_dir import DETECTIONS, EVALUATION, LATEST

__all__ = ['StagePlanner', 'validation_data']


class Training(stages.Training):
    """Train one detector with MMDetection 2."""

    tool = 'train.py'

    def history(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch, or by iteration if it counts those."""
        return json.loads(read(osp.join(self.work_dir, EVALUATION)) or '{}')

    def lines(self) -> list[dict]:
        """Lines of its log."""
        return [line for name in sorted(os.listdir(self.work_dir)) if name.endswith('.log.json')
                for line in read_log(osp.join(self.work_dir, name))]


class Detection(Testing):
    """Write what a detector finds in its test data as COCO results."""

    file = DETECTIONS

    def run(self, environment: Optional[dict] = None, log: Optional[str] = None,
            lock: Optional[int] = None) -> None:
        """Detect; the arguments are those of a training.

        Raises:
            StageFailed: It ended with an error.
        """
        unfinished = osp.join(self.folder, 'unfinished')
        status, _ = run_tool(['test.py', self.config, self.checkpoint, '--format-only',
                              '--eval-options', cfg_option('jsonfile_prefix', unfinished)],
                             environment, log, lock)
        if status:
            raise StageFailed(f'testing {self.checkpoint} {how_it_ended(status)}, see '
                              f'{log or "above"}.')
        os.replace(f'{unfinished}.bbox.json', self.output)

    def values(self, comparison: Comparison) -> dict[str, float]:
        """APs over all objects for the teacher, and those by degree if the data carry degrees."""
        dataset, detections = comparison.dataset, json.loads(read(self.output))
        values = {}
        if self.checkpoint == comparison.teacher:
            values = percent(metrics_of(evaluate(dataset.coco, detections, dataset.cat_ids,
                                                 dataset.img_ids)))
        if comparison.columns:
            values.update(aps_by_degree(dataset.coco, detections))
        return values


class StagePlanner(Planner):
    """Plans trainings and detections with MMDetection 2."""

    kind = Training
    tests_coco_only = True

    def last_checkpoint(self, settings: Config) -> str:
        """The link to the last checkpoint, where its end is evaluated.

        Raises:
            ConfigError: It would not be, there would be none, or nothing says how long the
                training is.
        """
        check_last_evaluation(settings)
        check_last_checkpoint(settings.get('checkpoint_config'),
                              f'{settings.filename}: checkpoint_config',
                              dict(save_last=True, out_dir=None, create_symlink=True))
        return LATEST

    def test(self, role: str, checkpoint: str, folder: str) -> Detection:
        """The detections of a checkpoint on the validation data."""
        config = without_methods(self.config)
        config.model = self.sources[role].model_config()
        config.data.test = config.data.val
        return Detection(self.add(f'test_{role}', config), checkpoint, folder)


def check_last_evaluation(config: Config) -> None:
    """Raise ConfigError if a training's last epoch, or iteration, would not be evaluated."""
    schedule, evaluation = schedule_of(config), config.get('evaluation') or {}
    if schedule.unit == 'epoch' and not evaluation.get('by_epoch', True):
        return  # how many iterations there will be is not known
    intervals = [(0, evaluation.get('interval', 1)), *(evaluation.get('dynamic_intervals') or ())]
    interval = [every for begin, every in intervals if begin <= schedule.length][-1]
    counted = schedule.length - (evaluation.get('start') or 0)
    if counted < 0 or counted % interval:
        raise ConfigError(
            f'{config.filename}: {schedule.unit} {schedule.length}, the last, would not be '
            f'evaluated, and a comparison compares what is measured there. Set '
            f'evaluation.interval, now {interval}, so that it is.')


def validation_data(config: Config) -> tuple[Optional[CocoDataset], list[str]]:
    """The validation data if they are in COCO's format, and the degrees that they carry, by name.

    Raises:
        DataError: They cannot be read.
    """
    with silence():  # pycocotools reports every step
        dataset = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True))
    if not isinstance(dataset, CocoDataset):
        return None, []
    return dataset, degree_columns(dataset.coco)
