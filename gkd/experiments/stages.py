"""Stages of a comparison with MMDetection 2."""

from __future__ import annotations

import json
import os
import os.path as osp
from typing import Optional

from mmcv import Config

from gkd.commands.processes import StageFailed, how_it_ended, run_tool, setting
from gkd.comparison import stages
from gkd.comparison.degrees import aps_by_degree
from gkd.comparison.plan import Comparison
from gkd.comparison.stages import Testing, percent, read
from gkd.datasets.coco_eval import evaluate, metrics_of
from gkd.report.logs import read_log
from gkd.running.config import load_config
from gkd.work_dir import DETECTIONS, EVALUATION


class Training(stages.Training):
    """Train one detector with MMDetection 2."""

    tool = 'train.py'
    load = staticmethod(load_config)

    @staticmethod
    def epochs_of(config: Config) -> int:
        """Number of epochs that a config says."""
        return config.runner.max_epochs

    def history(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch."""
        return json.loads(read(osp.join(self.work_dir, EVALUATION)) or '{}')

    def lines(self) -> list[dict]:
        """Lines of its log."""
        return [line for name in sorted(os.listdir(self.work_dir)) if name.endswith('.log.json')
                for line in read_log(osp.join(self.work_dir, name))]


class Detection(Testing):
    """Write what a detector finds in its test data as COCO results."""

    file = DETECTIONS
    load = staticmethod(load_config)

    def run(self, environment: Optional[dict] = None, log: Optional[str] = None) -> None:
        """Detect; the arguments are those of a training.

        Raises:
            StageFailed: It ended with an error.
        """
        unfinished = osp.join(self.folder, 'unfinished')
        status, _ = run_tool(['test.py', self.config, self.checkpoint, '--format-only',
                              '--eval-options', setting('jsonfile_prefix', unfinished)],
                             environment, log)
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
