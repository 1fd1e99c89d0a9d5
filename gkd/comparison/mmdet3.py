"""The comparison of methods with MMDetection 3."""

from __future__ import annotations

import copy
import json
import os.path as osp
from collections.abc import Sequence
from glob import escape, glob
from typing import Optional, Union

from gkd.commands.processes import StageFailed, how_it_ended, run_tool
from gkd.comparison import stages
from gkd.comparison.degrees import aps_by_degree, degree_columns
from gkd.comparison.methods import choose_methods, variant, without_methods
from gkd.comparison.plan import NOTHING, Comparison, Planner, check_methods, family_of
from gkd.comparison.run import check_distils, numbered, run_comparison
from gkd.comparison.stages import Testing, percent, read
from gkd.compat.coco import InspectedCOCO
from gkd.datasets import prepare_embedded
from gkd.distiller import Distiller
from gkd.engine.commands import load_config
from gkd.errors import ConfigError, DataError, GKDError
from gkd.files import write_atomically
from gkd.frameworks import Config, ConfigDict, build_detector
from gkd.progress import silence, without_warnings
from gkd.report.runs import Run, read_run
from gkd.work_dir import DETECTIONS, EVALUATION


class Training(stages.Training):
    """Train one detector with MMDetection 3."""

    tool = 'mmdet3/train.py'
    load = staticmethod(load_config)

    @staticmethod
    def epochs_of(config: Config) -> int:
        """Number of epochs that a config says."""
        return config.train_cfg.max_epochs

    def history(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch."""
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
    load = staticmethod(load_config)

    def run(self, environment: Optional[dict] = None, log: Optional[str] = None) -> None:
        """Test; the arguments are those of a training.

        Raises:
            StageFailed: It ended with an error, or without metrics.
        """
        status, _ = run_tool(['mmdet3/test.py', self.config, self.checkpoint, '--work-dir',
                              self.folder], environment, log)
        # MMEngine names the file, and the folder that it lies in, by the time.
        written = sorted(glob(osp.join(escape(self.folder), '*', '*.json')))
        if status or not written:
            raise StageFailed(f'testing {self.checkpoint} '
                              f'{how_it_ended(status) if status else "left no metrics"}, see '
                              f'{log or "above"}.')
        write_atomically(self.output, read(written[-1]))

    def values(self, comparison: Comparison) -> dict[str, float]:
        """APs over all objects, in percent, and those by degree if the data carry degrees."""
        values = percent({name.rpartition('/')[2]: value
                          for name, value in json.loads(read(self.output)).items()})
        if comparison.columns:
            values.update(aps_by_degree(comparison.dataset, json.loads(
                read(osp.join(self.folder, DETECTIONS)))))
        return values


class EpochPlanner(Planner):
    """Plans trainings with MMDetection 3."""

    kind = Training

    def last_checkpoint(self, settings: Config) -> str:
        """Name of the checkpoint of the last epoch."""
        return f'epoch_{self.epochs or Training.epochs_of(settings)}.pth'

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
        return Evaluation(self.write(f'test_{osp.basename(folder)}', config), checkpoint, folder)


def compare(config_path: str, methods: Optional[Sequence[str]] = None,
            seeds: Union[int, Sequence[int]] = 3, epochs: Optional[int] = None,
            work_dir: Optional[str] = None, jobs: int = 1, results: Optional[str] = None,
            only_list: bool = False) -> None:
    """Train teacher, plain student and every method; write ``comparison.md``, ``.csv``, ``.png``.

    It is the comparison of :func:`gkd.experiments.compare.compare`, for MMDetection 3. If the
    validation data carry degrees of difficulty, ``degrees.md`` and ``degrees.csv`` tell them
    apart.

    Args:
        config_path: A distillation config; its own ``model.knowledge`` is the method ``gkd``.
        methods: Names of methods and variants, combined with ``+``; None for each method alone.
        seeds: Number of runs of each, with seeds from 0 on; or the seeds.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes (default: ``work_dirs/compare/NAME_OF_CONFIG``).
        jobs: Stages to run at once.
        results: CSV to append a row to for every training (default: ``results.csv`` in the work
            dir).
        only_list: Print which stages are finished and which are not, and run none.

    Raises:
        ConfigError: The config trains no distiller, or a method is unknown.
        DataError: The annotations of the validation data cannot be read.
        StageFailed: Some trainings failed; the others are in the table.
    """
    config = load_config(config_path)
    check_distils(config, config_path)
    recipes = choose_methods(config, methods)
    name = osp.splitext(osp.basename(config_path))[0]
    work_dir = osp.abspath(work_dir or osp.join('work_dirs', 'compare', name))
    run_comparison(plan(config, name, recipes, numbered(seeds), epochs, work_dir), jobs, results,
                   only_list)


def plan(config: Config, title: str, recipes: dict[str, dict], seeds: Sequence[int],
         epochs: Optional[int], work_dir: str, fresh: bool = False,
         detect: bool = True) -> Comparison:
    """Write the config of every stage, and list the stages.

    Args:
        config: The distillation config.
        title: What is compared.
        recipes: What every method teaches.
        seeds: Seeds of the runs.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes.
        fresh: Never use the checkpoints that the config names.
        detect: Plan tests, too: of the teacher and, if the data carry degrees, of every run.

    Raises:
        ConfigError: Teacher and student cannot be paired, or cannot be trained or evaluated.
        DataError: The annotations of the validation data cannot be read.
    """
    if not (epochs or config.get('train_cfg', {}).get('max_epochs')):
        raise ConfigError(f'{config.filename} has no `train_cfg.max_epochs`; use '
                          f'EpochBasedTrainLoop.')
    if not config.get('val_dataloader'):
        raise ConfigError(f'{config.filename} has no `val_dataloader` to measure AP on.')
    # What is wrong with the detectors is wrong for all methods.
    family = family_of(untrained(variant(config, NOTHING)))
    taught, refused = check_methods(config, recipes, untrained)
    coco = validation_annotations(config) if detect else None
    columns = degree_columns(coco) if coco is not None else []

    planner = EpochPlanner(config, work_dir, epochs, fresh)
    runs = planner.runs({method: recipes[method] for method in taught}, seeds)
    tests = planner.tests(runs if columns else {}) if detect else {}
    return Comparison(title, work_dir, planner.preparation, runs, tests, refused,
                      planner.teacher_checkpoint, coco, columns, data_name(config), family,
                      taught=taught)


def coco_evaluator(config: Config) -> Optional[ConfigDict]:
    """The part of ``val_evaluator`` that reads COCO annotations, None if there is none."""
    evaluators = config.val_evaluator
    return next((evaluator for evaluator in
                 (evaluators if isinstance(evaluators, list) else [evaluators])
                 if evaluator.type in ('CocoMetric', 'mmdet.CocoMetric')
                 and evaluator.get('ann_file')), None)


def validation_annotations(config: Config) -> Optional[InspectedCOCO]:
    """The annotations that APs are measured by, None if they are not in COCO's format.

    Raises:
        DataError: They cannot be read.
    """
    evaluator = coco_evaluator(config)
    if evaluator is None:
        return None
    prepare_embedded(evaluator.ann_file)
    try:
        with silence():  # pycocotools reports every step
            return InspectedCOCO(evaluator.ann_file)
    except DataError as error:
        raise DataError(f'val_evaluator.ann_file: {error}') from None


def untrained(config: Config) -> Distiller:
    """Build a distiller without reading the checkpoints of teacher and student.

    Raises:
        ConfigError: MMDetection cannot build it.
    """
    model = copy.deepcopy(config.model)
    for role in ('teacher', 'student'):
        model[role].checkpoint = None
    try:
        with without_warnings():
            return build_detector(model)
    except GKDError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ConfigError(f'model: {type(error).__name__}: {error}') from error


def data_name(config: Config) -> str:
    """Name of a config's data set: of its folder, or of the annotations' folder."""
    dataset = config.val_dataloader.dataset
    folder = dataset.get('data_root') or osp.dirname(dataset.get('ann_file') or '')
    return osp.basename(osp.normpath(folder)).replace('_', '-')
