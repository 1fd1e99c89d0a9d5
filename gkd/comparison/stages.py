"""Stages of a longer experiment, which are reused once they are done."""

from __future__ import annotations

import hashlib
import json
import os
import os.path as osp
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Optional

from tqdm import tqdm

from gkd.commands.processes import StageFailed, cfg_option, how_it_ended, run_tool
from gkd.comparison.methods import without_methods
from gkd.datasets.coco_eval import METRICS, by_coco_names
from gkd.detectors.config_files import find_file, read_config
from gkd.distiller import Distiller
from gkd.files import write_atomically
from gkd.frameworks import Config
from gkd.planning.door import load_config, schedule_of
from gkd.progress import say
from gkd.report.results import machine, version
from gkd.report.runs import median_step
from gkd.work_dir import PROCESS

STAMP = 'stage.txt'


@dataclass
class Training(ABC):
    """Train one detector with the very command that a user would type.

    Attributes:
        config: Path of its config.
        checkpoint: Checkpoint to train, the last of its work dir.
        seed: Seed of weights and data order.
        options: Checkpoints to start from, by the dotted name of the setting that they replace.
        tool: The command, a file in ``tools/``.
    """

    config: str
    checkpoint: str
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)
    tool: ClassVar[str]

    @abstractmethod
    def history(self) -> dict[str, dict[str, float]]:
        """Metrics by epoch, or by iteration if it counts those."""

    @abstractmethod
    def lines(self) -> list[dict]:
        """Lines of its log."""

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
    def end(self) -> str:
        """Number of the last epoch, or of the last iteration if it counts those."""
        return str(schedule_of(self.settings).length)

    def fingerprint(self) -> str:
        """Hash of everything that the training depends on."""
        depends_on = [self.settings.pretty_text, self.seed, self.end,
                      *map(stamp_of, self.inputs)]
        model = self.settings.model
        if model.type == Distiller.__name__:
            depends_on += [self.detector_text(model[role].config)
                           for role in ('teacher', 'student')]
        return digest(depends_on)

    def detector_text(self, config: Any) -> str:
        """Text of the config that a distillation config names; empty if it holds the model."""
        if not isinstance(config, str):
            return ''
        path = find_file(config) or config
        # The file may describe nothing but the model.
        whole = osp.isfile(path) and {'data', 'train_dataloader'} & read_config(path).keys()
        return (load_config(path) if whole else read_config(path)).pretty_text

    def finished(self) -> bool:
        """Whether it is finished, with all that it depends on as it is now."""
        return read(osp.join(self.work_dir, STAMP)) == self.fingerprint() and self.complete()

    def prepare(self) -> bool:
        """Remove results of other inputs; return whether nothing is left to do."""
        claim(self.work_dir, self.fingerprint())
        return self.complete()

    def complete(self) -> bool:
        """Whether its work dir holds all that it should leave."""
        return self.end in self.history()

    def run(self, environment: Optional[dict] = None, log: Optional[str] = None,
            lock: Optional[int] = None) -> None:
        """Train, resuming from the last checkpoint; record peak memory, machine and version.

        Args:
            environment: Variables of the environment to set.
            log: File that gets what the training prints, instead of the terminal.
            lock: Descriptor of the lock of its folder, which the training holds, too.

        Raises:
            StageFailed: The training ended with an error, or without a last evaluation.
        """
        command = [self.tool, self.config, '--work-dir', self.work_dir, '--seed', str(self.seed)]
        if self.options:
            command += ['--cfg-options', *(cfg_option(*option) for option in self.options.items())]
        path = osp.join(self.work_dir, PROCESS)
        before = json.loads(read(path) or '{}').get('peak_memory', 0)
        # Now, because the clone may change during the training, or this process be killed.
        process = dict(peak_memory=before, machine=machine(), version=version())
        write_atomically(path, json.dumps(process))
        status, memory = run_tool(command, environment, log, lock)
        if status:
            raise StageFailed(f'training {self.config} {how_it_ended(status)}, see '
                              f'{log or "above"}. The same command resumes from here.')
        process['peak_memory'] = max(memory, before)
        write_atomically(path, json.dumps(process))
        self.metrics()

    def metrics(self) -> dict[str, float]:
        """Metrics at its end, by COCO's names.

        Raises:
            StageFailed: It has not been evaluated there, or detected nothing, or no average
                precision was measured.
        """
        history = self.history()
        if self.end not in history:
            unit = schedule_of(self.settings).unit
            raise StageFailed(f'{self.config}: {unit} {self.end}, the last, was not evaluated, or '
                              f'nothing was detected in its evaluation: MMDetection measures '
                              f'nothing then. Train longer, or lower `score_thr` in the '
                              f'detector\'s test_cfg.')
        metrics = by_coco_names(history[self.end])
        if METRICS['AP'] not in metrics:
            raise StageFailed(f'{self.config}: its evaluation measures {", ".join(metrics)}, and '
                              f'no average precision of boxes in all validation data, which a '
                              f'comparison needs.')
        return metrics

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
        lines = self.lines()
        step = median_step(lines)
        gpu = [line['memory'] for line in lines if 'memory' in line]
        process = json.loads(read(osp.join(self.work_dir, PROCESS)) or '{}')
        memory = max(gpu, default=0) or process.get('peak_memory')
        cost = {}
        if step is not None:
            cost['time'] = step
        if memory:
            cost['memory'] = memory
        return cost


@dataclass
class Testing(ABC):
    """Test a checkpoint.

    Attributes:
        config: Path of a config.
        checkpoint: Checkpoint to test.
        folder: Folder of the results, for nothing else.
        file: Name of the file that it makes there.
    """

    config: str
    checkpoint: str
    folder: str
    file: ClassVar[str]

    @abstractmethod
    def run(self, environment: Optional[dict] = None, log: Optional[str] = None,
            lock: Optional[int] = None) -> None:
        """Test; the arguments are those of a training.

        Raises:
            StageFailed: It ended with an error.
        """

    @abstractmethod
    def values(self, comparison: Any) -> dict[str, float]:
        """What the result came to, by the names that tables give it.

        Args:
            comparison: The :class:`gkd.comparison.plan.Comparison` that it belongs to.
        """

    @property
    def output(self) -> str:
        """File that the stage makes."""
        return osp.join(self.folder, self.file)

    @property
    def inputs(self) -> list[str]:
        """Files that it is made from, among other settings."""
        return [self.checkpoint]

    def fingerprint(self) -> str:
        """Hash of everything that the result depends on."""
        return digest([load_config(self.config).pretty_text, stamp_of(self.checkpoint)])

    def finished(self) -> bool:
        """Whether it is finished, with all that it depends on as it is now."""
        return (read(osp.join(self.folder, STAMP)) == self.fingerprint()
                and osp.isfile(self.output))

    def prepare(self) -> bool:
        """Remove results of other inputs; return whether nothing is left to do."""
        claim(self.folder, self.fingerprint())
        return osp.isfile(self.output)


class StageProgress:
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
            >>> stages = StageProgress(['data', 'training', 'training', 'training'], jobs=2)
            >>> stages.end('data', 5)
            >>> stages.end('training', 60)
            >>> stages.times()
            '00:00 so far, about 01:00 to go'
        """
        left = sum(count * sum(self.seconds[kind]) / len(self.seconds[kind])
                   for kind, count in self.waiting.items() if self.seconds[kind]) / self.jobs
        gone = tqdm.format_interval(time.time() - self.started)
        return f'{gone} so far' + (f', about {tqdm.format_interval(left)} to go' if left else '')


def percent(metrics: dict[str, float]) -> dict[str, float]:
    """MMDetection's metrics under the names of tables; -1 stands for no such objects.

    Example:
        >>> percent({'bbox_mAP': 0.25, 'bbox_mAP_50': 0.0, 'bbox_mAP_l': -1.0})
        {'AP': 25.0, 'AP50': 0.0}
    """
    return {name: 100 * metrics[key] for name, key in METRICS.items() if metrics.get(key, -1) >= 0}


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


def digest(values: list) -> str:
    """Hash of plain values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def read(path: str) -> str:
    """Contents of a text file, empty if there is none."""
    if not osp.isfile(path):
        return ''
    with open(path, encoding='utf-8') as file:
        return file.read()
