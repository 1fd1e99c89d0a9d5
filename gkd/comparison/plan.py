"""The stages of a comparison, and the configs of its trainings."""

from __future__ import annotations

import json
import os.path as osp
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, Union

from gkd.commands.options import replace_epochs
from gkd.comparison.data import move_to_strip
from gkd.comparison.methods import variant
from gkd.comparison.stages import Testing, Training
from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource
from gkd.distiller import Distiller
from gkd.errors import CheckpointError, ConfigError, PairError
from gkd.files import write_atomically
from gkd.frameworks import Config
from gkd.planning.door import load_config
from gkd.report.names import PLAIN_STUDENT
from gkd.report.results import COLUMNS, PLAIN, STUDENT, TEACHER, Result, metrics_text
from gkd.work_dir import named_folder

NOTHING = dict(knowledge=[])
Stage = Union[Training, Testing]


@dataclass
class Comparison:
    """All stages of a comparison.

    Attributes:
        title: What is compared.
        work_dir: Where everything goes.
        preparation: Trainings of the teacher and the students that all start from.
        runs: Trainings by method and seed; the first method is the plain student.
        detections: Tests of the teacher and, if the data carry degrees, of every run; by the
            checkpoint.
        refused: Why methods cannot serve this pair of detectors, or the teacher cannot be tested.
        teacher: Checkpoint of the teacher.
        dataset: Validation data in COCO's format, for stages to evaluate on; None if in another.
        columns: Names of the ranges of degrees that are evaluated.
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
    detections: dict[str, Testing]
    refused: dict[str, str]
    teacher: str
    dataset: Any = None
    columns: list[str] = field(default_factory=list)
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


def check_methods(config: Config, recipes: dict[str, dict], build: Callable[[Config], Distiller]
                  ) -> tuple[dict[str, dict], dict[str, str]]:
    """What every method that can serve the detectors sets in ``model``; why others cannot.

    Args:
        config: The distillation config.
        recipes: What every method sets.
        build: Builds the distiller of a config, untrained.

    Raises:
        ConfigError: A method's type or settings are wrong, whatever the detectors.
    """
    taught, refused = {}, {}
    for method, settings in recipes.items():
        try:
            uses_prototypes = build(variant(config, settings)).prototypes is not None
        except PairError as error:
            refused[method] = f'refused: {error}'
        except ConfigError as error:
            raise ConfigError(f'method {method!r}: {error}\nMend it, or name the others with '
                              f'--methods.') from error
        else:
            taught[method] = {key: value for key, value in settings.items()
                              if key != 'prototypes' or uses_prototypes}
    return taught, refused


class Planner(ABC):
    """Plans a comparison's stages, and writes their configs into its work dir.

    Args:
        config: The distillation config.
        work_dir: Where everything goes.
        epochs: Replaces the configs' number of epochs.
        strip: Name of the tree crowns' strip that validates, which the config does already.
        fresh: Never use the checkpoints that the config names.
        suffix: Added to the names of the runs.

    Attributes:
        preparation: Trainings of the detectors that the runs start from.
        configs: Texts of the configs by their files, which are not written yet.
        teacher_checkpoint: The teacher's, once it is planned.
        kind: Type of the trainings.
        tests_coco_only: Whether tests need validation data in COCO's format.
    """

    kind: ClassVar[type[Training]]
    tests_coco_only: ClassVar[bool]

    def __init__(self, config: Config, work_dir: str, epochs: Optional[int],
                 strip: Optional[str] = None, fresh: bool = False, suffix: str = ''):
        self.config = config
        self.work_dir = work_dir
        self.epochs = epochs
        self.strip = strip
        self.fresh = fresh or bool(strip)  # those would have seen the strip
        self.suffix = suffix
        self.sources = dict(
            teacher=DetectorSource.parse(config.model.teacher, 'model.teacher', True),
            student=DetectorSource.parse(config.model.student, 'model.student'))
        self.preparation: list[Training] = []
        self.configs: dict[str, str] = {}
        self.used: set[str] = set()  # checkpoints that are there, as printed
        self.teacher_checkpoint = ''
        self.other_teacher = ''  # in the names of runs

    @abstractmethod
    def last_checkpoint(self, settings: Config) -> str:
        """Name of the last checkpoint that the training of a config leaves.

        Raises:
            ConfigError: The config does not say how long it trains, or would not evaluate its end.
        """

    @abstractmethod
    def test(self, role: str, checkpoint: str, folder: str) -> Testing:
        """The test of a checkpoint of the teacher or a student on the validation data."""

    def add(self, name: str, settings: Config) -> str:
        """Add a config to those that :meth:`write` writes; returns its file."""
        path = osp.join(self.work_dir, 'configs', f'{name}.py')
        self.configs[path] = settings.pretty_text
        return path

    def write(self) -> None:
        """Write the configs of all stages, once nothing else can be refused."""
        for path, text in self.configs.items():
            write_atomically(path, text)

    def training(self, name: str, settings: Config, folder: str, seed: int,
                 starts: Optional[dict[str, str]] = None) -> Training:
        """A training in a folder of the work dir.

        Args:
            name: Name of the config.
            settings: The config.
            folder: The folder.
            seed: The seed.
            starts: Checkpoints to start from, by the setting that they replace.

        Raises:
            ConfigError: The config does not say how long it trains, or would not evaluate its end.
        """
        if self.epochs is not None:
            replace_epochs(settings, self.epochs)
        checkpoint = osp.join(self.work_dir, folder, self.last_checkpoint(settings))
        return self.kind(self.add(name, settings), checkpoint, seed, starts or {})

    def own_config(self, role: str) -> Config:
        """The config that trains the teacher or the student alone, on the same strips.

        Raises:
            ConfigError: The distillation config does not name a file, or that has no such strip.
        """
        source = self.sources[role]
        path = find_file(source.config) if isinstance(source.config, str) else None
        if path is None:
            raise ConfigError(
                f'{source.key}.config names no config file to train it with, which is needed: '
                f'{source.key}.checkpoint = {source.checkpoint!r} is not there, or not used with '
                f'this seed or strip.')
        config = load_config(path, {f'model.{key}': value
                                    for key, value in source.overrides.items()})
        if self.strip:
            move_to_strip(config, self.strip)
        return config

    def start(self, role: str, checkpoint: Optional[str], seed: int, folder: str) -> str:
        """The checkpoint that runs start from: one that is there, or one to be trained."""
        path = find_file(checkpoint) if checkpoint and not self.fresh else None
        if path is not None:
            if path not in self.used:
                print(f'model.{role}: {path} is there and used as it is')
            self.used.add(path)
            return osp.abspath(path)
        if checkpoint and not self.fresh and named_folder(checkpoint):
            raise CheckpointError(f'model.{role}.checkpoint: {named_folder(checkpoint)}')
        training = self.training(role, self.own_config(role), folder, seed)
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
        return self.training(name, config, f'{name}{teacher}_seed{seed}', seed, starts)

    def runs(self, recipes: dict[str, dict], seeds: Sequence[int],
             teacher_seed: int = 0) -> dict[str, dict[int, Training]]:
        """The trainings of the plain student and of every method, by seed.

        Args:
            recipes: What every method sets in ``model``.
            seeds: Seeds of the runs.
            teacher_seed: Seed of the teacher.
        """
        self.teacher(teacher_seed)
        students = self.students(seeds)
        return {method: {seed: self.run(method, settings, seed, students.get(seed))
                         for seed in seeds}
                for method, settings in {PLAIN_STUDENT: NOTHING, **recipes}.items()}

    def tests(self, runs: dict[str, dict[int, Training]]) -> dict[str, Testing]:
        """The tests of the teacher, which is planned, and of runs, by the checkpoint.

        Args:
            runs: Trainings to test, by method and seed.
        """
        folder = osp.join(self.work_dir, 'detections')
        name = f'teacher{self.other_teacher[len("_teacher"):]}'
        teacher = self.teacher_checkpoint
        students = [each.checkpoint for trainings in runs.values() for each in trainings.values()]
        return {teacher: self.test('teacher', teacher, osp.join(folder, name)),
                **{student: self.test('student', student, osp.join(
                    folder, osp.basename(osp.dirname(student)))) for student in students}}


def family_of(distiller: Distiller) -> str:
    """Type of the student, after the teacher's if they differ."""
    teacher, student = (type(model).__name__ for model in (distiller.teacher, distiller.student))
    return student if teacher == student else f'{teacher} to {student}'
