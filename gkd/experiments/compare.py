"""Train a student alone and with every method of distillation, and compare."""

from __future__ import annotations

import json
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
from gkd.datasets.tree_crowns import STRIPS, TREE_CROWNS, strip_folder
from gkd.detectors.source import DetectorSource, find_file
from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError
from gkd.experiments.methods import choose_methods, variant, without_methods
from gkd.experiments.results import (
    COLUMNS,
    STUDENT,
    Result,
    alone,
    append_result,
    metrics_text,
)
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
from gkd.running.config import load_config, untrained_model
from gkd.running.data import build_checked_dataset, leaf_configs
from gkd.work_dir import LATEST

NOTHING = dict(knowledge=[])
LEGEND = '''
AP in percent on the validation data after the last epoch, mean over seeds. Gain: mean difference
to the plain student of the same seed, with its 95 % confidence interval (Student's t over the
seeds). Time: median training step without loading data and without generating prototypes between
epochs. Memory: peak of {device}, which holds the teacher, for the plain student too.
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
        data: Name of the data set.
        family: Types of the detectors.
        teacher_seed: The teacher's seed.
        strip: Name of the strip that validates, if the data have several.
        taught: What every method sets in ``model``.
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
    data: str = ''
    family: str = ''
    teacher_seed: int = 0
    strip: str = ''
    taught: dict[str, dict] = field(default_factory=dict)
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


    def identify(self, training: Training, options: str, machine: str) -> tuple[str, ...]:
        """What identifies a training among the rows of a CSV: :attr:`Result.run`."""
        method = next((method for method, runs in self.runs.items() if training in runs.values()),
                      TEACHER if training.checkpoint == self.teacher else STUDENT)
        teacher_seed = '' if method in (PLAIN, STUDENT) else str(self.teacher_seed)
        student_seed = '' if method == TEACHER else str(training.seed)
        return (self.data, self.family, teacher_seed, student_seed, self.strip,
                'plain' if method == PLAIN else method, options, machine)

    def result(self, training: Training, options: str = '') -> Result:
        """Row of a finished training.

        Args:
            training: One of the preparation or of the runs.
            options: Settings that were replaced for it.
        """
        made_with = training.made_with()
        *run, machine = self.identify(training, options, made_with['machine'])
        taught = self.taught.get(run[COLUMNS.index('method')])
        return Result(*run, settings=json.dumps(taught, separators=(',', ':')) if taught else '',
                      **metrics_text(training.metrics()), **made_with)


def compare(config_path: str, methods: Optional[Sequence[str]] = None,
            seeds: Union[int, Sequence[int]] = 3, epochs: Optional[int] = None,
            work_dir: Optional[str] = None, jobs: int = 1, teacher_seed: int = 0,
            strip: Optional[str] = None, results: Optional[str] = None,
            only_list: bool = False) -> None:
    """Train teacher, plain student and every method; write ``comparison.md``, ``.csv``, ``.png``.

    The plain student is the distiller with nothing to teach: same start, same images in the same
    order, same schedule. What is finished is not run again, what was interrupted goes on; several
    commands may share a work dir. If the validation data carry degrees of difficulty,
    ``degrees.md`` and ``degrees.csv`` tell them apart.

    The teacher's checkpoint is used if it is there and trained if not; likewise the student's, if
    the config names one. In its path ``seed0`` stands for every seed; without it, one checkpoint
    is the start of all runs.

    Args:
        config_path: A distillation config; its own ``model.knowledge`` is the method ``gkd``. Its
            ``methods`` and ``variants`` replace and add to those of
            ``configs/_base_/comparison.py``.
        methods: Names of methods and variants, combined with ``+``; None for each method alone.
        seeds: Number of runs of each, with seeds from 0 on; or the seeds.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes (default: ``work_dirs/compare/NAME_OF_CONFIG``, followed
            by the strip).
        jobs: Stages to run at once.
        teacher_seed: Seed of the teacher. Another than 0 trains one of its own.
        strip: Name of the tree crowns' strip that validates; see
            :data:`gkd.datasets.tree_crowns.STRIPS`.
        results: CSV to append a row to for every training (default: ``results.csv`` in the work
            dir).
        only_list: Print which stages are finished and which are not, and run none.

    Raises:
        ConfigError: The config trains no distiller, or a method is unknown.
        StageFailed: Some trainings failed; the others are in the table.
    """
    config = load_config(config_path)
    if config.model.type != Distiller.__name__:
        raise ConfigError(f'{config_path} trains a {config.model.type}; a comparison needs a '
                          f'distillation config, which names a teacher and a student.')
    recipes = choose_methods(config, methods)
    name = osp.splitext(osp.basename(config_path))[0] + (f'_{strip}' if strip else '')
    work_dir = osp.abspath(work_dir or osp.join('work_dirs', 'compare', name))
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    comparison = plan(config, name, recipes, seeds, epochs, work_dir, teacher_seed, strip)
    for method, reason in comparison.refused.items():
        print(f'{method}: {reason}')
    if only_list:
        for stage in comparison.stages():
            print(f'{"finished" if stage.finished() else "to do   "}  '
                  f'{osp.relpath(osp.dirname(stage.output))}')
        return
    run_all(comparison, jobs, results or osp.join(work_dir, 'results.csv'))
    table = read(osp.join(work_dir, 'comparison.md'))
    print(f'\n{table}\nfiles:  {osp.relpath(work_dir)}/comparison.md, .csv, .png'
          + (', degrees.md, .csv' if comparison.columns else ''))
    if comparison.failed:
        raise StageFailed(f'{len(comparison.failed)} stages failed or could not start; the table '
                          f'holds the others. The same command goes on from here.')


def plan(config: Config, title: str, recipes: dict[str, dict], seeds: Sequence[int],
         epochs: Optional[int], work_dir: str, teacher_seed: int = 0,
         strip: Optional[str] = None, fresh: bool = False, suffix: str = '') -> Comparison:
    """Write the config of every stage, and list the stages.

    Args:
        config: The distillation config.
        title: What is compared.
        recipes: What every method teaches.
        seeds: Seeds of the runs.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes.
        teacher_seed: Seed of the teacher. Another than 0 trains one of its own.
        strip: Name of the tree crowns' strip that validates. With one, teacher and students are
            trained on the rest, and checkpoints that the config names are not used.
        fresh: Never use the checkpoints that the config names.
        suffix: Added to the names of the runs, to tell them from others in the work dir.

    Raises:
        ConfigError: Teacher and student cannot be paired, or cannot be trained.
        DataError: There is no validation data.
    """
    if not (epochs or config.get('runner', {}).get('max_epochs')):
        raise ConfigError(f'{config.filename} has no `runner.max_epochs`; use EpochBasedRunner.')
    if strip:
        move_to_strip(config, strip)
        fresh = True
    # What is wrong with the detectors is wrong for all methods.
    family = family_of(untrained_model(variant(config, NOTHING)))
    refused, taught = {}, {}
    for method, settings in recipes.items():
        try:
            uses_prototypes = untrained_model(variant(config, settings)).prototypes is not None
        except ConfigError as error:
            refused[method] = f'refused: {error}'
        else:
            taught[method] = settings if uses_prototypes else dict(knowledge=settings['knowledge'])
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
        own = own_config(source)
        if strip:
            move_to_strip(own, strip)
        training = Training(write(source.key.split('.')[-1], own),
                            osp.join(work_dir, folder, LATEST), epochs, seed)
        preparation.append(training)
        return training.checkpoint

    teacher_source = DetectorSource.parse(config.model.teacher, 'model.teacher', True)
    student_source = DetectorSource.parse(config.model.student, 'model.student')
    other_teacher = f'_teacher{teacher_seed}' if teacher_seed else ''
    teacher = start(teacher_source, None if fresh or teacher_seed else teacher_source.checkpoint,
                    teacher_seed, f'teacher{teacher_seed or ""}')
    students = {}
    if student_source.checkpoint is not None:
        for seed in seeds:
            checkpoint = re.sub(r'seed\d+', f'seed{seed}', student_source.checkpoint)
            students[seed] = start(student_source, None if fresh else checkpoint, seed,
                                   f'student_seed{seed}')

    def run(method: str, settings: dict, seed: int) -> Training:
        starts = {} if method == PLAIN else {'model.teacher.checkpoint': teacher}
        if seed in students:
            starts['model.student.checkpoint'] = students[seed]
        named = variant(config, settings)
        if method == PLAIN:
            named.model.teacher.checkpoint = None  # it is the same under all teachers
            name, folder = f'plain{suffix}', f'plain{suffix}_seed{seed}'
        else:
            name = f'{method}{suffix}'
            folder = f'{name}{other_teacher}_seed{seed}'
        return Training(write(name, named),
                        osp.join(work_dir, folder, LATEST), epochs, seed, starts)

    runs = {method: {seed: run(method, settings, seed) for seed in seeds}
            for method, settings in {PLAIN: NOTHING, **recipes}.items() if method not in refused}

    detections = {}
    if dataset is not None:
        path = write('test_teacher', validation_config(config, teacher_source))
        detections[teacher] = Detection(
            path, teacher, osp.join(work_dir, 'detections', f'teacher{teacher_seed or ""}'))
    if columns:
        path = write('test_student', validation_config(config, student_source))
        for trainings in runs.values():
            for training in trainings.values():
                folder = osp.join(work_dir, 'detections', osp.basename(training.work_dir))
                detections[training.checkpoint] = Detection(path, training.checkpoint, folder)
    return Comparison(title, work_dir, preparation, runs, detections, refused, dataset, columns,
                      teacher, data_name(config), family, teacher_seed, strip_of(config), taught)


def move_to_strip(config: Config, strip: str) -> None:
    """Let another strip of the tree crowns validate.

    Args:
        config: Changed in place.
        strip: Key of :data:`gkd.datasets.tree_crowns.STRIPS`.

    Raises:
        ConfigError: There is no such strip, or the config is of other data.
    """
    if strip not in STRIPS:
        raise ConfigError(f'strip {strip!r} is unknown; known are {", ".join(STRIPS)}.')
    leaves = [leaf for split in ('train', 'val', 'test')
              for leaf in leaf_configs(config.data[split])]
    if not all(str(leaf.ann_file).startswith(TREE_CROWNS) for leaf in leaves):
        raise ConfigError(f'{config.filename}: only the tree crowns have strips; its data are '
                          f'{leaves[0].ann_file}.')
    for leaf in leaves:
        for key in ('ann_file', 'img_prefix'):
            leaf[key] = leaf[key].replace(TREE_CROWNS, strip_folder(strip), 1)


def strip_of(config: Config) -> str:
    """Name of the strip that validates; empty for data that have none."""
    ann_file = str(leaf_configs(config.data.val)[0].ann_file)
    return next((strip for strip in STRIPS if ann_file.startswith(strip_folder(strip))), '')


def data_name(config: Config) -> str:
    """Name of a config's data set: of its ``data_root``, else of the annotations' folder."""
    root = config.get('data_root') or osp.dirname(leaf_configs(config.data.val)[0].ann_file)
    return osp.basename(osp.normpath(root)).replace('_', '-')


def family_of(distiller: Distiller) -> str:
    """Type of the student, after the teacher's if they differ."""
    teacher, student = (type(model).__name__ for model in (distiller.teacher, distiller.student))
    return student if teacher == student else f'{teacher} to {student}'


def validation_config(config: Config, source: DetectorSource) -> Config:
    """The config that tests one of the two detectors on the validation data."""
    config = without_methods(config)
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


def run_all(comparison: Comparison, jobs: int, results: str) -> None:
    """Run every stage as soon as what it starts from is there; report after each.

    Args:
        comparison: The stages.
        jobs: How many to run at once.
        results: CSV to append a row to for every training.
    """
    waiting = comparison.stages()
    schedule = Schedule([type(stage).__name__ for stage in waiting], jobs)
    unmade = {stage.output for stage in waiting}
    running = {}
    environments: queue.Queue[dict] = queue.Queue()
    for environment in shares(jobs):
        environments.put(environment)

    def work(stage: Stage) -> Optional[float]:
        environment = environments.get()
        try:
            return run_stage(stage, environment, jobs > 1)
        finally:
            environments.put(environment)

    def end(stage: Stage, seconds: Optional[float]) -> None:
        schedule.end(type(stage).__name__, seconds)
        unmade.remove(stage.output)
        comparison.measured[stage.output] = measure(stage, comparison)
        if isinstance(stage, Training):
            append_result(results, comparison.result(stage))

    # A single stage draws bars of its own.
    quiet = jobs == 1 or not on_terminal()
    with ThreadPoolExecutor(jobs) as pool, children_end_too(), \
            progress(None, 'stages', len(waiting), disable=quiet, bar_format=BAR) as bar:
        while True:
            ready = next((stage for stage in waiting if unmade.isdisjoint(stage.inputs)), None)
            if ready is not None and len(running) < jobs:
                waiting.remove(ready)
                schedule.begin(osp.relpath(osp.dirname(ready.output)))
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


def run_stage(stage: Stage, environment: Optional[dict] = None,
              logged: bool = False) -> Optional[float]:
    """Run a stage, unless it is finished; if another process is at it, wait for that one.

    Args:
        stage: The stage.
        environment: Variables of the environment to set.
        logged: Write what it prints to a log beside its folder.

    Returns:
        Seconds that it took, None if it was finished before.

    Raises:
        StageFailed: It ended with an error.
    """
    folder = osp.dirname(stage.output)
    with alone(f'{folder}.lock'):
        if stage.prepare():
            say(f'finished before: {osp.relpath(folder)}')
            return None
        log = f'{osp.relpath(folder)}.log' if logged else None
        if log:
            say(f'log: {log}')
        started = time.time()
        stage.run(environment, log)
        return time.time() - started


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
