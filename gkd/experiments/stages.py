"""Stages of a longer experiment: trainings and detections that are reused once they are done."""

from __future__ import annotations

import hashlib
import json
import os
import os.path as osp
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

from mmcv import Config
from tqdm import tqdm

from gkd.commands.processes import StageFailed, how_it_ended, run_tool, setting
from gkd.detectors.source import find_file, read_config
from gkd.distiller import Distiller
from gkd.experiments.methods import without_methods
from gkd.files import write_atomically
from gkd.progress import say
from gkd.report.logs import read_log
from gkd.report.results import machine, version
from gkd.report.runs import median_step
from gkd.running.config import load_config
from gkd.work_dir import DETECTIONS, EVALUATION, PROCESS

STAMP = 'stage.txt'


@dataclass
class Training:
    """Train one detector with the very command that a user would type.

    Attributes:
        config: Path of its config.
        checkpoint: Checkpoint to train, the latest of its work dir.
        epochs: Replaces the config's number of epochs.
        seed: Seed of weights and data order.
        options: Checkpoints to start from, by the dotted name of the setting that they replace.
    """

    config: str
    checkpoint: str
    epochs: Optional[int] = None
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """File that the stage makes."""
        return self.checkpoint

    @property
    def inputs(self) -> list[str]:
        """Files that it is made from, among other settings."""
        return list(self.options.values())

    @property
    def work_dir(self) -> str:
        """Folder of all that the training writes."""
        return osp.dirname(self.checkpoint)

    @cached_property
    def settings(self) -> Config:
        """The config with all that replaces its settings."""
        return without_methods(load_config(self.config, self.options))

    @property
    def last_epoch(self) -> str:
        """Number of the last epoch."""
        return str(self.epochs or self.settings.runner.max_epochs)

    def fingerprint(self) -> str:
        """Hash of everything that the training depends on."""
        depends_on = [self.settings.pretty_text, self.seed, self.last_epoch,
                      *map(stamp_of, self.inputs)]
        model = self.settings.model
        if model.type == Distiller.__name__:
            depends_on += [detector_text(model[role].config) for role in ('teacher', 'student')]
        return digest(depends_on)

    def finished(self) -> bool:
        """Whether it is finished, with all that it depends on as it is now."""
        return (read(osp.join(self.work_dir, STAMP)) == self.fingerprint()
                and self.last_epoch in self.history())

    def prepare(self) -> bool:
        """Remove results of other inputs; return whether nothing is left to do."""
        claim(self.work_dir, self.fingerprint())
        return self.last_epoch in self.history()

    def run(self, environment: Optional[dict] = None, log: Optional[str] = None) -> None:
        """Train, resuming from the last checkpoint; record peak memory, machine and version.

        Args:
            environment: Variables of the environment to set.
            log: File that gets what the training prints, instead of the terminal.

        Raises:
            StageFailed: The training ended with an error, or without a last evaluation.
        """
        command = ['train.py', self.config, '--work-dir', self.work_dir, '--seed', str(self.seed),
                   '--epochs', self.last_epoch]
        if self.options:
            command += ['--cfg-options', *(setting(*option) for option in self.options.items())]
        used = version()  # now, because the clone may change during the training
        status, memory = run_tool(command, environment, log)
        if status:
            raise StageFailed(f'training {self.config} {how_it_ended(status)}, see '
                              f'{log or "above"}. The same command goes on from here.')
        path = osp.join(self.work_dir, PROCESS)
        before = json.loads(read(path) or '{}').get('peak_memory', 0)
        write_atomically(path, json.dumps(dict(
            peak_memory=max(memory, before), machine=machine(), version=used)))
        self.metrics()

    def history(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch."""
        return json.loads(read(osp.join(self.work_dir, EVALUATION)) or '{}')

    def metrics(self) -> dict[str, float]:
        """Metrics of the last epoch.

        Raises:
            StageFailed: It has not been evaluated.
        """
        history = self.history()
        if self.last_epoch not in history:
            raise StageFailed(f'{self.config}: epoch {self.last_epoch}, the last, was not '
                              f'evaluated; choose `evaluation.interval` so that it is.')
        return history[self.last_epoch]

    def made_with(self) -> dict[str, str]:
        """Machine and version that trained it, empty if that was not written down."""
        process = json.loads(read(osp.join(self.work_dir, PROCESS)) or '{}')
        return {key: process.get(key, '') for key in ('machine', 'version')}

    def cost(self) -> dict[str, float]:
        """What training cost.

        Returns:
            ``'time'`` of a step in seconds without loading data, the median over the lines of the
            log, and peak ``'memory'`` in MiB: of the GPU if there was one, else of the process.
            What is not known is left out.
        """
        lines = [line for name in sorted(os.listdir(self.work_dir)) if name.endswith('.log.json')
                 for line in read_log(osp.join(self.work_dir, name))]
        step = median_step(lines)
        gpu = [line['memory'] for line in lines if 'memory' in line]
        process = json.loads(read(osp.join(self.work_dir, PROCESS)) or '{}')
        cost = {}
        if step is not None:
            cost['time'] = step
        if gpu or process:
            cost['memory'] = max(gpu) if gpu else process['peak_memory']
        return cost


@dataclass
class Detection:
    """Write what a detector finds in its test data as COCO results.

    Attributes:
        config: Path of a config.
        checkpoint: Checkpoint to test.
        folder: Folder of the results, for nothing else.
    """

    config: str
    checkpoint: str
    folder: str

    @property
    def output(self) -> str:
        """File that the stage makes."""
        return osp.join(self.folder, DETECTIONS)

    @property
    def inputs(self) -> list[str]:
        """Files that it is made from, among other settings."""
        return [self.checkpoint]

    def fingerprint(self) -> str:
        """Hash of everything that the detections depend on."""
        return digest([load_config(self.config).pretty_text, stamp_of(self.checkpoint)])

    def finished(self) -> bool:
        """Whether it is finished, with all that it depends on as it is now."""
        return (read(osp.join(self.folder, STAMP)) == self.fingerprint()
                and osp.isfile(self.output))

    def prepare(self) -> bool:
        """Remove results of other inputs; return whether nothing is left to do."""
        claim(self.folder, self.fingerprint())
        return osp.isfile(self.output)

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


class Schedule:
    """Says which stage begins, how long all have taken, and how long the others will.

    Args:
        kinds: Kinds of all stages; those of one kind should take about as long.
        jobs: How many run at once.
    """

    def __init__(self, kinds: Sequence[str], jobs: int = 1):
        self.total = len(kinds)
        self.number = 0
        self.jobs = jobs
        self.started = time.time()
        self.waiting = Counter(kinds)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def begin(self, what: str) -> None:
        """Say that a stage begins."""
        self.number += 1
        times = f'   ({self.times()})' if any(self.seconds.values()) else ''
        say(f'\n=== {self.number}/{self.total}  {what}{times}')

    def end(self, kind: str, seconds: Optional[float] = None) -> None:
        """Note that a stage has ended.

        Args:
            kind: Its kind.
            seconds: What it took; None if it was finished before.
        """
        self.waiting[kind] -= 1
        if seconds is not None:
            self.seconds[kind].append(seconds)

    def times(self) -> str:
        """The time so far, and an estimate for the other stages from finished ones of their kind.

        Example:
            >>> schedule = Schedule(['data', 'training', 'training', 'training'])
            >>> schedule.end('data', 5)
            >>> schedule.end('training', 60)
            >>> schedule.times()
            '00:00 so far, about 02:00 to go'
        """
        left = sum(count * sum(self.seconds[kind]) / len(self.seconds[kind])
                   for kind, count in self.waiting.items() if self.seconds[kind]) / self.jobs
        gone = tqdm.format_interval(time.time() - self.started)
        return f'{gone} so far' + (f', about {tqdm.format_interval(left)} to go' if left else '')


def claim(folder: str, fingerprint: str) -> None:
    """Stamp a stage's folder with its fingerprint; if it has another stamp, empty it first."""
    stamp = osp.join(folder, STAMP)
    if read(stamp) != fingerprint:
        if osp.isfile(stamp):
            shutil.rmtree(folder)
        os.makedirs(folder, exist_ok=True)
        write_atomically(stamp, fingerprint)


def stamp_of(checkpoint: str) -> str:
    """The stamp of an earlier stage's checkpoint; for other files, their size and time."""
    stamp = read(osp.join(osp.dirname(checkpoint), STAMP))
    if stamp or not osp.isfile(checkpoint):
        return stamp
    status = os.stat(checkpoint)
    return f'{status.st_size} {status.st_mtime_ns}'


def detector_text(config: Any) -> str:
    """Text of the config that a distillation config names; empty if it holds the model itself."""
    if not isinstance(config, str):
        return ''
    path = find_file(config) or config
    # The file may describe nothing but the model.
    whole = osp.isfile(path) and 'data' in read_config(path)
    return (load_config(path) if whole else read_config(path)).pretty_text


def digest(values: list) -> str:
    """Hash of plain values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def read(path: str) -> str:
    """Contents of a text file, empty if there is none."""
    if not osp.isfile(path):
        return ''
    with open(path) as file:
        return file.read()
