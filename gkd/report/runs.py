"""Read what a training has left in its work dir."""

from __future__ import annotations

import importlib
import json
import os
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from gkd.datasets.coco_eval import METRICS
from gkd.detectors.config_files import find_file, reading, with_registered_names
from gkd.detectors.config_text import parsed
from gkd.detectors.source import DetectorSource
from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError
from gkd.frameworks import Config
from gkd.report.logs import order, read_log
from gkd.report.names import PLAIN_STUDENT, TEACHER
from gkd.report.scalars import read_scalars, with_names_of_mmdetection_2
from gkd.work_dir import (
    DETECTIONS,
    EVALUATION,
    RECORD,
    TEACHER_DETECTIONS,
    last_whole_checkpoint,
)

DISTILLED, DETECTOR = 'distilled student', 'detector'
ORDER = (TEACHER, DETECTOR, PLAIN_STUDENT, DISTILLED)


@dataclass
class Run:
    """A training, finished or not; or only a teacher's checkpoint.

    Attributes:
        name: How the report calls it.
        role: What it is next to the others: ``'teacher'``, ``'plain student'``, ...
        work_dir: Its folder; None for a bare checkpoint.
        config: Config that it was trained with.
        text: Text of the config as it was logged.
        checkpoint: Its last checkpoint; None if there is none yet.
        detections: File of COCO results, which may not exist.
        lines: Lines of its JSON logs that count, oldest first.
        evaluations: Metrics by epoch, or by step if those are counted.
        record: What the :class:`gkd.recorder.Recorder` has kept.
    """

    name: str
    role: str
    work_dir: Optional[str]
    config: Config
    text: str
    checkpoint: Optional[str]
    detections: str
    lines: list[dict] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def is_distilled(self) -> bool:
        """Whether a teacher teaches it anything."""
        return self.config.model.type == Distiller.__name__ and bool(
            self.config.model.get('knowledge'))

    @property
    def by_epoch(self) -> bool:
        """Whether training is counted in epochs."""
        return 'max_epochs' in self.config.get('runner', {})

    @property
    def unit(self) -> str:
        """What the training is counted in: ``'epoch'`` or ``'step'``."""
        return 'epoch' if self.by_epoch else 'step'

    @property
    def length(self) -> Optional[int]:
        """Epochs (or steps) to train; None for a bare checkpoint."""
        runner = self.config.get('runner', {})
        return runner.get('max_epochs', runner.get('max_iters'))

    @property
    def trained(self) -> float:
        """Epochs (or steps) that are in the log."""
        done = [self.place(line) for line in self.lines if line.get('mode') == 'train']
        return max([*done, *self.evaluations], default=0)

    def steps_per_epoch(self) -> int:
        """Steps of an epoch; where they were not recorded, of the longest epoch in the log."""
        recorded = [epoch['steps'] for epoch in self.record.get('epochs', {}).values()
                    if epoch.get('steps')]
        logged = [line['iter'] for line in self.lines if line.get('mode') == 'train']
        return max(recorded or logged, default=1)

    def place(self, line: dict) -> float:
        """How far training was at a line of the log: epochs, or steps if those are counted."""
        if not self.by_epoch:
            return line.get('step', line['iter'])
        return line['epoch'] - 1 + line['iter'] / self.steps_per_epoch()

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Every loss term and the learning rate over the training."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for line in self.lines:
            if line.get('mode') != 'train':
                continue
            for name, value in line.items():
                if ('loss' in name or name == 'lr') and isinstance(value, (int, float)):
                    curves.setdefault(name, []).append((self.place(line), value))
        return curves

    def step_seconds(self) -> dict[str, float]:
        """Mean seconds of the parts of a step; empty if nothing is known."""
        counts: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for epoch in self.record.get('epochs', {}).values():
            for name, (count, total) in epoch.get('time', {}).items():
                counts[name] = counts.get(name, 0) + count
                seconds[name] = seconds.get(name, 0.0) + total
        if counts.get('step'):
            # Several kinds of knowledge share a step; the wait for an epoch's first is not timed.
            parts = {name: seconds.get(name, 0.0) / counts['step']
                     for name in ('student', 'teacher', 'knowledge', 'backward')}
            other = max(0.0, seconds['step'] / counts['step'] - sum(parts.values()))
            data = seconds.get('data', 0.0) / max(1, counts.get('data', 0))
            return dict(data=data, **parts, other=other)
        logged = sorted((line['time'] - line['data_time'], line['data_time'])
                        for line in self.lines if 'time' in line and 'data_time' in line)
        if not logged:
            return {}
        step, data = logged[len(logged) // 2]
        return dict(data=data, step=step)

    def data_config(self) -> Config:
        """A config that describes the detector, its student if it distils, and the data."""
        config = Config(self.config._cfg_dict.to_dict())
        if config.model.type == Distiller.__name__:
            config.model = DetectorSource.parse(config.model.student,
                                                'model.student').model_config()
        return config


def read_runs(work_dir: str, others: Sequence[str] = ()) -> tuple[Run, list[Run]]:
    """Read a run, its teacher and the runs to compare it with.

    Args:
        work_dir: Work dir of the run that the report is about.
        others: Work dirs of other runs, such as the plain student's.

    Returns:
        The run itself, and all of them in the order of the report: teachers first, distilled
        students last.

    Raises:
        DataError: A folder holds no training.
    """
    main = read_run(work_dir)
    runs = [main]
    if main.config.model.type == Distiller.__name__:
        teacher = read_teacher(main)
        runs += [teacher] if teacher else []
    folders = {osp.realpath(run.work_dir) for run in runs if run.work_dir}
    for other in others:
        if osp.realpath(other) not in folders:
            folders.add(osp.realpath(other))
            runs.append(read_run(other))
    if any(run.is_distilled for run in runs):
        for run in runs:
            run.role = PLAIN_STUDENT if run.role == DETECTOR else run.role
    for run in runs:
        alone = sum(other.role == run.role for other in runs) == 1
        run.name = run.role if alone else f'{run.role} ({run.name})'
    return main, sorted(runs, key=lambda run: ORDER.index(run.role))


def read_run(work_dir: str) -> Run:
    """Read a work dir.

    Raises:
        DataError: It holds no training.
    """
    if not osp.isdir(work_dir):
        raise DataError(f'no such folder: {work_dir}')
    lines, record, text = logs_and_record(work_dir)
    if text is None:
        raise DataError(f'{work_dir} is not the work dir of a training: it has neither {RECORD} '
                        f'nor a log (*.log.json, */vis_data/scalars.json).')
    kept = {int(done): metrics for done, metrics in
            read_json(osp.join(work_dir, EVALUATION)).items() if metrics}
    config = parse_config(text, work_dir)
    run = Run(osp.basename(osp.abspath(work_dir)), DETECTOR, work_dir, config, text,
              last_whole_checkpoint(work_dir), osp.join(work_dir, DETECTIONS), lines, kept, record)
    if run.by_epoch or not kept:
        # MMDetection's own trainings have their metrics in the log only.
        logged = {line['epoch']: line for line in lines if METRICS['AP'] in line}
        run.evaluations = {**logged, **kept}
    if run.is_distilled:
        run.role = DISTILLED
    elif config.model.type == Distiller.__name__:
        run.role = PLAIN_STUDENT
    return run


def logs_and_record(work_dir: str) -> tuple[list[dict], dict, Optional[str]]:
    """Lines of the logs of a training, its record, and its config's text, None if there is none.

    Raises:
        DataError: The record is damaged.
    """
    record, lines = read_json(osp.join(work_dir, RECORD)), read_logs(work_dir)
    if lines:
        return lines, record, config_text(lines, record)
    lines, text = read_scalars(work_dir)
    return lines, record, record.get('config') or text


def read_teacher(run: Run) -> Optional[Run]:
    """The teacher of a distilled student: its training if that is there, else its checkpoint.

    None if there is no such checkpoint any more.

    Raises:
        ConfigError: Its config cannot be read.
    """
    teacher = DetectorSource.parse(run.config.model.teacher, 'model.teacher')
    checkpoint = find_file(teacher.checkpoint or '')
    if checkpoint is None:
        return None
    detections = osp.join(run.work_dir, TEACHER_DETECTIONS)
    folder = osp.dirname(checkpoint) or osp.curdir
    found = read_run(folder) if logs_and_record(folder)[-1] is not None else None
    if found is not None and can_be_compared(found, run):
        found.role = TEACHER
        if not same_validation(found.config, run.config):
            # Trained elsewhere; what counts here is how well it does on these data.
            for key in {'data', 'val_dataloader', 'val_evaluator'} & run.config.keys():
                found.config[key] = run.config[key]
            found.evaluations, found.detections = {}, detections
        return found
    config = Config(run.config._cfg_dict.to_dict())
    config.model = teacher.model_config()
    config.pop('runner', None)
    return Run(TEACHER, TEACHER, None, config, config.pretty_text, checkpoint, detections)


def can_be_compared(teacher: Run, run: Run) -> bool:
    """Whether a teacher's training has its detections, or a config that can be run for them.

    The config of the other MMDetection cannot.
    """
    alike = ('train_dataloader' in teacher.config) == ('train_dataloader' in run.config)
    return alike or (same_validation(teacher.config, run.config)
                     and osp.isfile(teacher.detections))


def same_validation(config: Config, other: Config) -> bool:
    """Whether two configs validate on the same annotations."""
    files = [annotation_files(each.data.get('val', {})) for each in (config, other)]
    return files[0] == files[1]


def annotation_files(entry: Union[dict, list]) -> list[str]:
    """The annotation files of a data set's config, of all that it joins or wraps.

    Example:
        >>> annotation_files(dict(type='ConcatDataset', datasets=[dict(ann_file='a.json')]))
        ['a.json']
    """
    if isinstance(entry, (list, tuple)):
        return [path for inner in entry for path in annotation_files(inner)]
    for key in ('datasets', 'dataset'):
        if key in entry:
            return annotation_files(entry[key])
    paths = entry.get('ann_file') or []
    return list(paths) if isinstance(paths, (list, tuple)) else [paths]


def config_text(lines: list[dict], record: dict) -> Optional[str]:
    """Text of the config that a run was last started with."""
    texts = [record.get('config'), *(line.get('config') for line in reversed(lines))]
    return next(filter(None, texts), None)


def parse_config(text: str, work_dir: str) -> Config:
    """The config that a log holds, which is not run: a log is data.

    Modules that it imports are imported, as they register what the detectors are made of.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with reading:
            config = with_registered_names(Config(parsed(text)))
        import_modules(config)
        if 'train_dataloader' in config and 'data' not in config:
            return with_names_of_mmdetection_2(config)
        from mmdet.utils import compat_cfg  # MMDetection 2 has it
        return compat_cfg(config)
    except Exception as error:
        raise ConfigError(f'{work_dir}: the config in its log cannot be read: '
                          f'{type(error).__name__}: {error}') from error


def import_modules(config: Config) -> None:
    """Import what a config's ``custom_imports`` name, as reading its file does.

    Raises:
        ImportError: A module cannot be imported, and the config does not allow that.
    """
    settings = config.get('custom_imports') or {}
    names = settings.get('imports') or []
    for name in [names] if isinstance(names, str) else names:
        try:
            importlib.import_module(name)
        except ImportError:
            if not settings.get('allow_failed_imports'):
                raise


def read_logs(work_dir: str) -> list[dict]:
    """Lines of all JSON logs of a run; lines of a later start replace those they repeat."""
    lines: list[dict] = []
    for name in sorted(os.listdir(work_dir)):
        if name.endswith('.log.json'):
            new = read_log(osp.join(work_dir, name))
            first = next((order(line) for line in new if 'mode' in line), None)
            if first is not None:
                lines = [line for line in lines if 'mode' not in line or order(line) < first]
            lines += new
    return lines


def read_json(path: str) -> dict:
    """A JSON file's dict, empty if there is none.

    Raises:
        DataError: The file is damaged.
    """
    if not osp.isfile(path):
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            return dict(json.load(file))
    except (ValueError, TypeError) as error:
        raise DataError(f'{path} is damaged ({error}). Move it away; the report does without '
                        f'it.') from error


def median_step(lines: Sequence[dict]) -> Optional[float]:
    """Median seconds of a training step without loading data, over the lines of a JSON log.

    None if there are no such lines.

    Example:
        >>> median_step([dict(mode='train', time=0.5, data_time=0.25), dict(mode='val')])
        0.25
    """
    times = sorted(line['time'] - line['data_time'] for line in lines
                   if line.get('mode') == 'train' and 'time' in line)
    return times[len(times) // 2] if times else None
