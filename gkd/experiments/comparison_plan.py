"""The stages of a comparison of methods, and their configs."""

from __future__ import annotations

import json
import math
import os.path as osp
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional, Union

from mmcv import Config
from mmdet.datasets import CocoDataset

from gkd.datasets.degrees import DIGIT_SCENES_DEGREES
from gkd.datasets.tree_crowns import STRIPS, TREE_CROWNS, strip_folder
from gkd.detectors.source import DetectorSource, find_file
from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError
from gkd.experiments.methods import variant, without_methods
from gkd.experiments.stages import Detection, Training
from gkd.files import write_atomically
from gkd.progress import silence
from gkd.report.names import PLAIN_STUDENT
from gkd.report.results import COLUMNS, PLAIN, STUDENT, TEACHER, Result, metrics_text
from gkd.running.config import load_config, untrained_model
from gkd.running.data import build_checked_dataset, leaf_configs
from gkd.work_dir import LATEST

NOTHING = dict(knowledge=[])
Stage = Union[Training, Detection]


@dataclass
class Comparison:
    """All stages of a comparison.

    Attributes:
        title: What is compared.
        work_dir: Where everything goes.
        preparation: Trainings of the teacher and the students that all start from.
        runs: Trainings by method and seed; the first method is the plain student.
        detections: Detections of the teacher and, if the data carry degrees, of every run; by the
            checkpoint.
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
        for seed in self.runs[PLAIN_STUDENT]:
            for runs in self.runs.values():
                stages.append(runs[seed])
                if runs[seed].checkpoint in self.detections:
                    stages.append(self.detections[runs[seed].checkpoint])
        return stages

    def identify(self, training: Training, options: str, machine: str) -> tuple[str, ...]:
        """What identifies a training among the rows of a CSV: :attr:`Result.run`."""
        method = next((method for method, runs in self.runs.items() if training in runs.values()),
                      TEACHER if training.checkpoint == self.teacher else STUDENT)
        teacher_seed = '' if method in (PLAIN_STUDENT, STUDENT) else str(self.teacher_seed)
        student_seed = '' if method == TEACHER else str(training.seed)
        return (self.data, self.family, teacher_seed, student_seed, self.strip,
                PLAIN if method == PLAIN_STUDENT else method, options, machine)

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


def plan(config: Config, title: str, recipes: dict[str, dict], seeds: Sequence[int],
         epochs: Optional[int], work_dir: str, teacher_seed: int = 0,
         strip: Optional[str] = None, fresh: bool = False, suffix: str = '',
         detect: bool = True) -> Comparison:
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
        detect: Plan detections, too.

    Raises:
        ConfigError: Teacher and student cannot be paired, or cannot be trained.
        DataError: There is no validation data.
    """
    if not (epochs or config.get('runner', {}).get('max_epochs')):
        raise ConfigError(f'{config.filename} has no `runner.max_epochs`; use EpochBasedRunner.')
    if strip:
        move_to_strip(config, strip)
    # What is wrong with the detectors is wrong for all methods.
    family = family_of(untrained_model(variant(config, NOTHING)))
    taught, refused = check_methods(config, recipes)
    dataset = validation_data(config)
    columns = degree_columns(dataset) if detect else []

    planner = Planner(config, work_dir, epochs, strip, fresh or bool(strip), suffix)
    teacher = planner.teacher(teacher_seed)
    students = planner.students(seeds)
    runs = {method: {seed: planner.run(method, settings, seed, students.get(seed))
                     for seed in seeds}
            for method, settings in {PLAIN_STUDENT: NOTHING, **recipes}.items()
            if method not in refused}
    detections = {}
    if detect and dataset is not None:
        detections[teacher] = planner.detection('teacher', teacher)
    if columns:
        for training in (each for trainings in runs.values() for each in trainings.values()):
            detections[training.checkpoint] = planner.detection('student', training.checkpoint)
    return Comparison(title, work_dir, planner.preparation, runs, detections, refused, dataset,
                      columns, teacher, data_name(config), family, teacher_seed, strip_of(config),
                      taught)


def check_methods(config: Config,
                  recipes: dict[str, dict]) -> tuple[dict[str, dict], dict[str, str]]:
    """What every method that can serve the detectors sets in ``model``; why others cannot."""
    taught, refused = {}, {}
    for method, settings in recipes.items():
        try:
            uses_prototypes = untrained_model(variant(config, settings)).prototypes is not None
        except ConfigError as error:
            refused[method] = f'refused: {error}'
        else:
            taught[method] = settings if uses_prototypes else dict(knowledge=settings['knowledge'])
    return taught, refused


class Planner:
    """Writes the configs of a comparison's stages into its work dir.

    Args:
        config: The distillation config.
        work_dir: Where everything goes.
        epochs: Replaces the configs' number of epochs.
        strip: Name of the tree crowns' strip that validates.
        fresh: Never use the checkpoints that the config names.
        suffix: Added to the names of the runs.

    Attributes:
        preparation: Trainings of the detectors that the runs start from.
        teacher_checkpoint: The teacher's, once it is planned.
    """

    def __init__(self, config: Config, work_dir: str, epochs: Optional[int],
                 strip: Optional[str], fresh: bool, suffix: str):
        self.config = config
        self.work_dir = work_dir
        self.epochs = epochs
        self.strip = strip
        self.fresh = fresh
        self.suffix = suffix
        self.sources = dict(
            teacher=DetectorSource.parse(config.model.teacher, 'model.teacher', True),
            student=DetectorSource.parse(config.model.student, 'model.student'))
        self.preparation: list[Training] = []
        self.teacher_checkpoint = ''
        self.other_teacher = ''  # in the names of runs

    def write(self, name: str, settings: Config) -> str:
        """Write a config; returns its file."""
        path = osp.join(self.work_dir, 'configs', f'{name}.py')
        write_atomically(path, settings.pretty_text)
        return path

    def training(self, config: str, folder: str, seed: int,
                 starts: Optional[dict[str, str]] = None) -> Training:
        """A training in a folder of the work dir."""
        return Training(config, osp.join(self.work_dir, folder, LATEST), self.epochs, seed,
                        starts or {})

    def start(self, role: str, checkpoint: Optional[str], seed: int, folder: str) -> str:
        """The checkpoint that runs start from: one that is there, or one to be trained."""
        path = find_file(checkpoint) if checkpoint and not self.fresh else None
        if path is not None:
            print(f'model.{role}: {path} is there and used as it is')
            return osp.abspath(path)
        own = own_config(self.sources[role])
        if self.strip:
            move_to_strip(own, self.strip)
        training = self.training(self.write(role, own), folder, seed)
        self.preparation.append(training)
        return training.checkpoint

    def teacher(self, seed: int) -> str:
        """The teacher's checkpoint; with another seed than 0 a teacher of its own is trained."""
        named = None if seed else self.sources['teacher'].checkpoint
        self.teacher_checkpoint = self.start('teacher', named, seed, f'teacher{seed or ""}')
        self.other_teacher = f'_teacher{seed}' if seed else ''
        return self.teacher_checkpoint

    def students(self, seeds: Sequence[int]) -> dict[int, str]:
        """The students' checkpoints by seed; empty if they start untrained."""
        named = self.sources['student'].checkpoint
        if named is None:
            return {}
        return {seed: self.start('student', re.sub(r'seed\d+', f'seed{seed}', named), seed,
                                 f'student_seed{seed}') for seed in seeds}

    def run(self, method: str, settings: dict, seed: int, student: Optional[str]) -> Training:
        """The training of one method with one seed.

        Args:
            method: Its name.
            settings: What it sets in ``model``.
            seed: The seed.
            student: Checkpoint that the student starts from; None for an untrained one.
        """
        config = variant(self.config, settings)
        name, starts, teacher = f'{method}{self.suffix}', {}, self.other_teacher
        if method == PLAIN_STUDENT:
            name, teacher = f'{PLAIN}{self.suffix}', ''
            # The plain student is the same under all teachers and takes nothing from them.
            config.model.teacher.checkpoint = None
            config.model.student.pop('inherit', None)
        else:
            starts['model.teacher.checkpoint'] = self.teacher_checkpoint
        if student is not None:
            starts['model.student.checkpoint'] = student
        return self.training(self.write(name, config), f'{name}{teacher}_seed{seed}', seed, starts)

    def detection(self, role: str, checkpoint: str) -> Detection:
        """The detections of a checkpoint on the validation data."""
        path = self.write(f'test_{role}', validation_config(self.config, self.sources[role]))
        name = osp.basename(osp.dirname(checkpoint)) if role == 'student' else \
            f'teacher{self.other_teacher[len("_teacher"):]}'
        return Detection(path, checkpoint, osp.join(self.work_dir, 'detections', name))


def move_to_strip(config: Config, strip: str) -> None:
    """Use another strip of the tree crowns for validation.

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
    """Name of the strip used for validation; empty for data that have none."""
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
