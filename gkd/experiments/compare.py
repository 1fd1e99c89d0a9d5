"""Train a student alone and with every method of distillation, and compare."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import os.path as osp
import queue
import re
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Optional, Union

import torch
from mmcv import Config
from mmdet.datasets import CocoDataset

from gkd.datasets.coco_eval import METRICS, evaluate, metrics_of
from gkd.datasets.degrees import DIGIT_SCENES_DEGREES, evaluate_by_degree
from gkd.detectors import Distiller
from gkd.detectors.source import REPOSITORY, DetectorSource, find_file, read_config
from gkd.errors import ConfigError, DataError
from gkd.experiments.stages import (
    Detection,
    Schedule,
    StageFailed,
    Training,
    children_end_too,
    read,
)
from gkd.files import write_atomically
from gkd.progress import on_terminal, progress, say, silence
from gkd.report.comparison import (
    PLAIN,
    TEACHER,
    Row,
    draw_comparison,
    format_columns,
    format_comparison,
    format_csv,
)
from gkd.running.config import build_model, load_config
from gkd.running.data import build_checked_dataset
from gkd.work_dir import LATEST

METHODS = osp.join(REPOSITORY, 'configs', '_base_', 'comparison.py')
OWN = 'gkd'
RESERVED = ('plain', 'student', 'teacher', 'configs', 'detections')
LEGEND = '''
AP in percent on the validation data after the last epoch, mean ± standard deviation over seeds.
Gain: difference to the plain student of the same seed. Time: median training step without loading
data and without generating prototypes between epochs. Memory: peak of {device}; the teacher is in
it, also in the plain student's.
'''
BAR = '{desc}: {bar:20} {n_fmt}/{total_fmt}{postfix}'
Stage = Union[Training, Detection]


@dataclass
class Comparison:
    """All stages of a comparison.

    Attributes:
        title: What is compared.
        work_dir: Where everything goes.
        preparation: Trainings of the teacher and the students that all start from.
        runs: Trainings by method and seed; the first method is the plain student.
        detections: Of the teacher and, if the data carry degrees, of every run, by the checkpoint.
        refused: Why methods cannot serve this pair of detectors.
        dataset: Validation data; None if it is not in COCO's format.
        columns: Names of the ranges of degrees that are evaluated.
        teacher: Checkpoint of the teacher.
        measured: Values of the stages that are finished, by their output.
        failed: Outputs of those that failed or could not start.
    """

    title: str
    work_dir: str
    preparation: list[Training]
    runs: dict[str, dict[int, Training]]
    detections: dict[str, Detection]
    refused: dict[str, str]
    dataset: Optional[CocoDataset]
    columns: list[str]
    teacher: str
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def stages(self) -> list[Stage]:
        """All stages: what all start from, then every method with the first seed, and so on."""
        stages = [*self.preparation]
        if self.teacher in self.detections:
            stages.append(self.detections[self.teacher])
        for seed in self.runs[PLAIN]:
            for runs in self.runs.values():
                stages.append(runs[seed])
                if runs[seed].checkpoint in self.detections:
                    stages.append(self.detections[runs[seed].checkpoint])
        return stages


def compare(config_path: str, methods: Optional[Sequence[str]] = None, seeds: int = 3,
            epochs: Optional[int] = None, work_dir: Optional[str] = None, jobs: int = 1) -> None:
    """Train teacher, plain student and every method; write ``comparison.md``, ``.csv``, ``.png``.

    The plain student is the distiller with nothing to teach: same start, same images in the same
    order, same schedule. What is finished is not run again, what was interrupted goes on. If the
    validation data carry degrees of difficulty, ``degrees.md`` and ``degrees.csv`` tell them
    apart.

    The teacher's checkpoint is used if it is there and trained if not; likewise the student's, if
    the config names one. In its path ``seed0`` stands for every seed; without it, one checkpoint
    is the start of all runs.

    Args:
        config_path: A distillation config; its own ``model.knowledge`` is the method ``gkd``. Its
            ``methods`` replace and add to those of ``configs/_base_/comparison.py``.
        methods: Names of methods, combined with ``+``; None for each of them alone.
        seeds: Runs of each, with seeds from 0 on.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes (default: ``work_dirs/compare/NAME_OF_CONFIG``).
        jobs: Stages to run at once.

    Raises:
        ConfigError: The config trains no distiller, or a method is unknown.
        StageFailed: Some trainings failed; the others are in the table.
    """
    config = load_config(config_path)
    if config.model.type != Distiller.__name__:
        raise ConfigError(f'{config_path} trains a {config.model.type}; a comparison needs a '
                          f'distillation config, which names a teacher and a student.')
    recipes = choose_methods(config, methods)
    name = osp.splitext(osp.basename(config_path))[0]
    work_dir = osp.abspath(work_dir or osp.join('work_dirs', 'compare', name))
    comparison = plan(config, name, recipes, range(seeds), epochs, work_dir)
    for method, reason in comparison.refused.items():
        print(f'{method}: {reason}')
    run_all(comparison, jobs)
    table = read(osp.join(work_dir, 'comparison.md'))
    print(f'\n{table}\nfiles:  {osp.relpath(work_dir)}/comparison.md, .csv, .png'
          + (', degrees.md, .csv' if comparison.columns else ''))
    if comparison.failed:
        raise StageFailed(f'{len(comparison.failed)} stages failed or could not start; the table '
                          f'holds the others. The same command goes on from here.')


def choose_methods(config: Config, names: Optional[Sequence[str]] = None) -> dict[str, list]:
    """What every method teaches, by name.

    Args:
        config: The distillation config.
        names: Names of methods, possibly combined with ``+``; None for each of them alone.

    Raises:
        ConfigError: A name is unknown or cannot name a folder.
    """
    known = {OWN: config.model.get('knowledge', []), **read_config(METHODS).methods,
             **config.get('methods', {})}
    for name in known:
        if name in RESERVED or not re.fullmatch(r'[\w-]+', name):
            raise ConfigError(f'methods: {name!r} cannot name a method; use letters, digits, _ '
                              f'and -, and none of {", ".join(RESERVED)}.')
    chosen = {}
    for name in names or known:
        parts = name.split('+')
        unknown = [part for part in parts if part not in known]
        if unknown:
            raise ConfigError(f'--methods {name}: {", ".join(map(repr, unknown))} unknown; known '
                              f'are {", ".join(known)}, and their combinations such as '
                              f'{OWN}+{list(known)[1]}.')
        chosen[name] = [kind for part in parts for kind in known[part]]
    return chosen


def plan(config: Config, title: str, recipes: dict[str, list], seeds: Sequence[int],
         epochs: Optional[int], work_dir: str) -> Comparison:
    """Write the config of every stage, and list the stages.

    Args:
        config: The distillation config.
        title: What is compared.
        recipes: What every method teaches.
        seeds: Seeds of the runs.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes.

    Raises:
        ConfigError: Teacher and student cannot be paired, or cannot be trained.
        DataError: There is no validation data.
    """
    if not (epochs or config.get('runner', {}).get('max_epochs')):
        raise ConfigError(f'{config.filename} has no `runner.max_epochs`; use EpochBasedRunner.')
    build(variant(config, []))  # what is wrong with the detectors is wrong for all methods
    refused = {}
    for method, knowledge in recipes.items():
        try:
            build(variant(config, knowledge))
        except ConfigError as error:
            refused[method] = f'refused: {error}'
    dataset = validation_data(config)
    columns = degree_columns(dataset)

    def write(name: str, settings: Config) -> str:
        path = osp.join(work_dir, 'configs', f'{name}.py')
        write_atomically(path, settings.pretty_text)
        return path

    preparation: list[Training] = []

    def start(source: DetectorSource, checkpoint: Optional[str], seed: int, folder: str) -> str:
        path = find_file(checkpoint) if checkpoint else None
        if path is not None:
            print(f'{source.key}: {path} is there and used as it is')
            return osp.abspath(path)
        training = Training(write(source.key.split('.')[-1], own_config(source)),
                            osp.join(work_dir, folder, LATEST), epochs, seed)
        preparation.append(training)
        return training.checkpoint

    teacher_source = DetectorSource.parse(config.model.teacher, 'model.teacher', True)
    student_source = DetectorSource.parse(config.model.student, 'model.student')
    teacher = start(teacher_source, teacher_source.checkpoint, 0, 'teacher')
    starts = {seed: {'model.teacher.checkpoint': teacher} for seed in seeds}
    if student_source.checkpoint is not None:
        for seed in seeds:
            checkpoint = re.sub(r'seed\d+', f'seed{seed}', student_source.checkpoint)
            starts[seed]['model.student.checkpoint'] = start(
                student_source, checkpoint, seed, f'student_seed{seed}')

    runs = {}
    for method, knowledge in {PLAIN: [], **recipes}.items():
        if method not in refused:
            short = 'plain' if method == PLAIN else method
            path = write(short, variant(config, knowledge))
            runs[method] = {seed: Training(
                path, osp.join(work_dir, f'{short}_seed{seed}', LATEST), epochs, seed,
                starts[seed]) for seed in seeds}

    detections = {}
    if dataset is not None:
        path = write('test_teacher', validation_config(config, teacher_source))
        detections[teacher] = Detection(path, teacher, osp.join(work_dir, 'detections', 'teacher'))
    if columns:
        path = write('test_student', validation_config(config, student_source))
        for trainings in runs.values():
            for training in trainings.values():
                folder = osp.join(work_dir, 'detections', osp.basename(training.work_dir))
                detections[training.checkpoint] = Detection(path, training.checkpoint, folder)
    return Comparison(title, work_dir, preparation, runs, detections, refused, dataset, columns,
                      teacher)


def variant(config: Config, knowledge: list) -> Config:
    """The distillation config with something else to teach."""
    config = copy.deepcopy(config)
    config.pop('methods', None)
    config.model.knowledge = knowledge
    return config


def validation_config(config: Config, source: DetectorSource) -> Config:
    """The config that tests one of the two detectors on the validation data."""
    config = copy.deepcopy(config)
    config.pop('methods', None)
    config.model = source.model_config()
    config.data.test = config.data.val
    return config


def own_config(source: DetectorSource) -> Config:
    """The config that trains a detector alone.

    Raises:
        ConfigError: The distillation config does not name a file.
    """
    path = find_file(source.config) if isinstance(source.config, str) else None
    if path is None:
        raise ConfigError(f'{source.key}.checkpoint: no such file: {source.checkpoint}; and '
                          f'{source.key}.config names no config file to train it with.')
    return load_config(path, {f'model.{key}': value for key, value in source.overrides.items()})


def build(config: Config) -> None:
    """Build a distiller without weights, to learn whether it can be.

    Raises:
        ConfigError: It cannot.
    """
    for role in {'teacher', 'student'} & config.model.keys():
        config.model[role].checkpoint = None
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of untrained weights
    try:
        build_model(config)
    finally:
        logging.disable(before)


def validation_data(config: Config) -> Optional[CocoDataset]:
    """The validation data if it is a COCO data set, else None."""
    if 'val' not in config.data:
        raise DataError(f'{config.filename} has no `data.val` to measure AP on.')
    with silence():  # pycocotools reports every step
        dataset = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True))
    return dataset if isinstance(dataset, CocoDataset) else None


def degree_columns(dataset: Optional[CocoDataset]) -> list[str]:
    """Names of the ranges of degrees, if all annotations carry them."""
    annotations = dataset.coco.dataset['annotations'] if dataset is not None else []
    if not annotations or not all(degree in annotation for annotation in annotations
                                  for degree in DIGIT_SCENES_DEGREES):
        return []
    return [degree_column(degree, low, high)
            for degree, ranges in DIGIT_SCENES_DEGREES.items() for low, high in ranges]


def degree_column(degree: str, low: float, high: float) -> str:
    """Name of a range.

    Example:
        >>> degree_column('size', 28, 48), degree_column('size', 48, math.inf)
        ('size 28 to 48', 'size from 48')
    """
    return f'{degree} from {low:g}' if high == math.inf else f'{degree} {low:g} to {high:g}'


def run_all(comparison: Comparison, jobs: int) -> None:
    """Run every stage as soon as what it starts from is there; report after each.

    Args:
        comparison: The stages.
        jobs: How many to run at once.
    """
    waiting = comparison.stages()
    schedule = Schedule([type(stage).__name__ for stage in waiting], jobs)
    unmade = {stage.output for stage in waiting}
    running = {}
    environments: queue.Queue[dict] = queue.Queue()
    for environment in shares(jobs):
        environments.put(environment)

    def log_of(stage: Stage) -> Optional[str]:
        return f'{osp.relpath(osp.dirname(stage.output))}.log' if jobs > 1 else None

    def work(stage: Stage) -> float:
        environment = environments.get()
        started = time.time()
        try:
            stage.run(environment, log_of(stage))
        finally:
            environments.put(environment)
        return time.time() - started

    def end(stage: Stage, seconds: Optional[float] = None) -> None:
        schedule.end(type(stage).__name__, seconds)
        unmade.remove(stage.output)
        comparison.measured[stage.output] = measure(stage, comparison)

    # A single stage draws bars of its own.
    quiet = jobs == 1 or not on_terminal()
    with ThreadPoolExecutor(jobs) as pool, children_end_too(), \
            progress(None, 'stages', len(waiting), disable=quiet, bar_format=BAR) as bar:
        while True:
            ready = next((stage for stage in waiting if unmade.isdisjoint(stage.inputs)), None)
            if ready is not None and len(running) < jobs:
                waiting.remove(ready)
                schedule.begin(osp.relpath(osp.dirname(ready.output)))
                if ready.prepare():
                    say('finished before')
                    end(ready)
                    bar.update()
                else:
                    if jobs > 1:
                        say(f'log: {log_of(ready)}')
                    running[pool.submit(work, ready)] = ready
            elif running:
                done = wait(running, timeout=1, return_when=FIRST_COMPLETED).done
                names = ', '.join(osp.basename(osp.dirname(stage.output))
                                  for stage in running.values())
                bar.set_postfix_str(f'{schedule.times()}: {names}')
                for future in done:
                    stage = running.pop(future)
                    bar.update()
                    try:
                        end(stage, future.result())
                    except StageFailed as error:
                        say(f'\n{error}')
                        comparison.failed.add(stage.output)
                if done:
                    write_report(comparison)
            else:
                break
    comparison.failed.update(stage.output for stage in waiting)
    write_report(comparison)


def shares(jobs: int) -> list[dict[str, str]]:
    """Variables of the environment that share the machine between processes.

    Args:
        jobs: Processes at once.

    Returns:
        For each its threads, if the user has not set them, and one of the GPUs in turn.
    """
    if jobs == 1:
        return [{}]
    threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, (os.cpu_count() or 1) // jobs))
    gpus = [gpu for gpu in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if gpu] \
        or list(map(str, range(torch.cuda.device_count())))
    return [dict(OMP_NUM_THREADS=threads,
                 **(dict(CUDA_VISIBLE_DEVICES=gpus[job % len(gpus)]) if gpus else {}))
            for job in range(jobs)]


def measure(stage: Stage, comparison: Comparison) -> dict[str, float]:
    """APs in percent and costs of a finished stage, by the names that tables give them."""
    if isinstance(stage, Training):
        return {**percent(stage.metrics()), **stage.cost()}
    dataset, detections = comparison.dataset, json.loads(read(stage.output))
    values = {}
    if stage.checkpoint == comparison.teacher:
        values = percent(metrics_of(evaluate(dataset.coco, detections, dataset.cat_ids,
                                             dataset.img_ids)))
    if comparison.columns:
        for found in evaluate_by_degree(dataset.coco, detections):
            column = degree_column(found['degree'], found['low'], found['high'])
            if not math.isnan(found['AP']):
                values[column] = 100 * found['AP']
    return values


def percent(metrics: dict[str, float]) -> dict[str, float]:
    """MMDetection's metrics under the names of tables; -1 stands for no such objects.

    Example:
        >>> percent({'bbox_mAP': 0.25, 'bbox_mAP_50': 0.5, 'bbox_mAP_l': -1.0})
        {'AP': 25.0, 'AP50': 50.0}
    """
    return {name: 100 * metrics[key] for name, key in METRICS.items() if metrics.get(key, -1) >= 0}


def write_report(comparison: Comparison) -> None:
    """Write tables and plot of what is finished by now."""
    rows = rows_of(comparison)
    path = osp.join(comparison.work_dir, 'comparison')
    legend = LEGEND.format(device='the GPU' if torch.cuda.is_available() else 'the process')
    write_atomically(f'{path}.md', format_comparison(rows) + legend)
    write_atomically(f'{path}.csv', format_csv(rows, [*METRICS, 'time', 'memory']))
    draw_comparison(rows, comparison.title, f'{path}.png')
    if comparison.columns:
        rows = rows_of(comparison, of_degrees=True)
        path = osp.join(comparison.work_dir, 'degrees')
        write_atomically(f'{path}.md', format_columns(rows, comparison.columns))
        write_atomically(f'{path}.csv', format_csv(rows, comparison.columns))


def rows_of(comparison: Comparison, of_degrees: bool = False) -> list[Row]:
    """A row for the teacher and for every method, with the runs that are finished.

    Args:
        comparison: Its stages.
        of_degrees: Fill the rows with APs by degree instead of those over all objects.
    """
    def values(checkpoint: str) -> Optional[dict[str, float]]:
        detection = comparison.detections.get(checkpoint)
        output = detection.output if of_degrees or checkpoint == comparison.teacher else checkpoint
        return comparison.measured.get(output)

    rows = []
    if comparison.teacher in comparison.detections:
        found = values(comparison.teacher)
        rows.append(Row(TEACHER, {} if found is None else {0: found}))
    for method, trainings in comparison.runs.items():
        runs = {seed: values(training.checkpoint) for seed, training in trainings.items()}
        failed = [str(seed) for seed, training in trainings.items()
                  if training.checkpoint in comparison.failed]
        rows.append(Row(method, {seed: run for seed, run in runs.items() if run is not None},
                        f'failed with seed {", ".join(failed)}' if failed else ''))
    return rows + [Row(method, note=reason) for method, reason in comparison.refused.items()]
