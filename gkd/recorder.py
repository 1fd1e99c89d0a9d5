"""Record what the report of a run shows but its logs do not hold."""

from __future__ import annotations

import importlib.metadata
import json
import os.path as osp
import platform
import resource
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from gkd.distiller import Distiller
from gkd.files import written_whole
from gkd.frameworks import LOSSES_METHOD
from gkd.knowledge import RobustDistillingModule
from gkd.version import __version__
from gkd.watching import watched
from gkd.work_dir import BINS, RECORD

MIB = 2 ** 20
PACKAGES = ('torch', 'torchvision', 'mmcv', 'mmcv-full', 'mmcv-lite', 'mmengine', 'mmdet', 'numpy',
            'pycocotools')


def first_epoch(runner: Any) -> int:
    """The epoch, from 0, with which a run's record continues.

    Where nothing is left to train, all that was recorded stays.
    """
    return runner.epoch if runner.iter < runner.max_iters else runner.max_epochs


class Recorder:
    """Keep ``WORK_DIR/record.json`` while a model is trained; a hook of the runner says when.

    It gets for every epoch the distribution of robust weights on every level (of the first
    process), and where the time and memory of a step go. The methods of the detectors are timed
    from outside and are not changed. Values are copied from the GPU in :meth:`update` only.

    Args:
        model: What is trained, without its data-parallel wrapper.
        work_dir: Folder of the run. What it has recorded before is kept, unless it begins anew.
        epoch: The running epoch, from 0.
        step: Steps of the run that are done.
        config: Text of the config.
        seed: Seed of the run.
        processes: How many train.

    Attributes:
        stopwatch: Times the parts of a step. The hook reports to it those that are not methods.
        watching: What is watched until :meth:`close`.
    """

    def __init__(self, model: nn.Module, work_dir: str, epoch: int, step: int, config: str,
                 seed: Optional[int], processes: int):
        device = next(model.parameters()).device
        self.path = osp.join(work_dir, RECORD)
        earlier = earlier_record(self.path, epoch, step)
        self.started = time.time() - earlier.get('seconds', 0.0)
        self.record: dict[str, Any] = dict(
            config=config, seed=seed, versions=versions(device), processes=processes,
            weights=weight_sizes(model), epochs=earlier.get('epochs', {}))
        self.stopwatch = Stopwatch(device)
        self.histogram: Optional[WeightHistogram] = None
        self.watching = ExitStack()
        self.watch(model)

    def time_calls(self, owner: object, method: str, name: str,
                   then: Optional[str] = None) -> None:
        """Time the calls of a method as a part of the step; ``then`` is one that they begin."""
        self.watching.enter_context(watched(owner, method, self.stopwatch.timed(name, then)))

    def watch(self, model: nn.Module) -> None:
        """Time the parts of a model and look at its robust weights."""
        if not isinstance(model, Distiller):
            self.time_calls(model, LOSSES_METHOD, 'student')
            return
        self.time_calls(model.student, LOSSES_METHOD, 'student')
        self.time_calls(model, 'teacher_step', 'teacher')
        for kind in model.knowledge:
            self.time_calls(kind, 'forward', 'knowledge')
            if isinstance(kind, RobustDistillingModule) and kind.robust and not self.histogram:
                self.histogram = WeightHistogram()
                enter = self.watching.enter_context
                enter(watched(kind, 'forward', self.histogram.next_step))
                enter(watched(kind, 'weigh', self.histogram.look))

    def pause(self) -> None:
        """Do not count what happens until the next step, such as an evaluation, as waiting."""
        self.stopwatch.forget('data')

    def begin_step(self) -> None:
        """The data are there: stop timing the wait for them, and begin to time the step."""
        self.stopwatch.stop('data')
        self.stopwatch.start('step')

    def end_step(self) -> None:
        """Stop timing the step, and begin to time the wait for data."""
        self.stopwatch.stop('backward')
        self.stopwatch.stop('step')
        self.stopwatch.start('data')

    def update(self, epoch: int, steps: Optional[int]) -> None:
        """Add what has been seen since the last time to an epoch's record, and save it.

        Args:
            epoch: Number of the epoch, from 0.
            steps: Its length, None if it is not known.
        """
        record = self.record['epochs'].setdefault(str(epoch + 1), {})
        record['steps'] = steps
        record['time'] = add(record.get('time', {}), self.stopwatch.read())
        if self.stopwatch.kept:
            record['kept'] = self.stopwatch.kept
        if self.histogram is not None and self.histogram.counts is not None:
            record['robust_weights'] = self.histogram.read(record.get('robust_weights'))
        self.record['peak'] = max(peak_memory(self.stopwatch.device), self.record.get('peak', 0))
        self.save()

    def close(self) -> None:
        """Let go of the model, and save the record a last time."""
        self.watching.close()
        self.save()

    def save(self) -> None:
        """Write the record, whole or not at all."""
        self.record['seconds'] = time.time() - self.started
        with written_whole(self.path) as file:
            file.write(json.dumps(self.record).encode('utf-8'))


class Stopwatch:
    """Sum up the time of named spans, without making the host wait for the device.

    Args:
        device: On a GPU, the GPU's clock is used; the wait for data is timed by the host's clock.

    Attributes:
        kept: Largest memory in MiB that a span has left allocated on a GPU.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.open: dict[str, Any] = {}
        self.spans: list[tuple[str, Any, Any]] = []
        self.held: dict[str, int] = {}
        self.kept: dict[str, float] = {}

    def now(self, name: str) -> Any:
        """A point of time."""
        if self.device.type != 'cuda' or name == 'data':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self, name: str) -> None:
        """Begin a span."""
        self.open[name] = self.now(name)
        if self.device.type == 'cuda':
            self.held[name] = torch.cuda.memory_allocated(self.device)

    def stop(self, name: str) -> None:
        """End a span, if it has started."""
        if name not in self.open:
            return
        self.spans.append((name, self.open.pop(name), self.now(name)))
        if self.device.type == 'cuda':
            more = (torch.cuda.memory_allocated(self.device) - self.held[name]) / MIB
            self.kept[name] = max(self.kept.get(name, 0.0), more)

    def forget(self, name: str) -> None:
        """Drop a span that has started."""
        self.open.pop(name, None)

    def timed(self, name: str, then: Optional[str] = None) -> Callable:
        """A wrapper for :func:`watched` that times calls; ``then`` is a span that they begin."""
        def call(method: Callable, *args, **kwargs):
            self.start(name)
            result = method(*args, **kwargs)
            self.stop(name)
            if then is not None:
                self.start(then)
            return result
        return call

    def read(self) -> dict[str, list[float]]:
        """Number and total seconds of all spans since the last time; waits for a GPU once."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        totals: dict[str, list[float]] = {}
        for name, start, end in self.spans:
            on_gpu = isinstance(end, torch.cuda.Event)
            seconds = start.elapsed_time(end) / 1000 if on_gpu else end - start
            count, total = totals.get(name, (0, 0.0))
            totals[name] = [count + 1, total + seconds]
        self.spans = []
        return totals


class WeightHistogram:
    """Count robust weights by level and size, on their own device.

    Attributes:
        counts: Number of weights, ``(levels, BINS)`` int64; None before any was seen.
    """

    def __init__(self):
        self.counts: Optional[Tensor] = None
        self.first = True

    def next_step(self, method: Callable, *args, **kwargs):
        """A new step begins."""
        self.first = True
        return method(*args, **kwargs)

    def look(self, method: Callable, *args, **kwargs) -> tuple:
        """Count the weights of a step's first call, which are those of the instances."""
        result = method(*args, **kwargs)
        if self.first:
            self.first = False
            weights = result[0].detach()
            if self.counts is None:
                self.counts = torch.zeros(len(weights), BINS, dtype=torch.long,
                                          device=weights.device)
            bins = (weights.float() * BINS).long().clamp(0, BINS - 1)
            self.counts.scatter_add_(1, bins, torch.ones_like(bins))
        return result

    def read(self, before: Optional[list[list[int]]]) -> list[list[int]]:
        """Return the counts so far, added to those before, and set them to 0."""
        counts = self.counts.tolist()
        self.counts.zero_()
        if before is None:
            return counts
        return [[a + b for a, b in zip(*rows)] for rows in zip(before, counts)]


def earlier_record(path: str, epoch: int, step: int) -> dict[str, Any]:
    """What the earlier part of a run has recorded: of the epochs up to ``epoch``, and its time.

    Empty if the run begins with this ``step``, or nothing can be read.
    """
    if step == 0:
        return {}
    with suppress(OSError, ValueError, AttributeError, KeyError):
        with open(path, encoding='utf-8') as file:
            earlier = json.load(file)
        return dict(seconds=earlier.get('seconds', 0.0),
                    epochs={number: record for number, record in earlier['epochs'].items()
                            if int(number) <= epoch})
    return {}


def add(before: dict[str, list[float]], more: dict[str, list[float]]) -> dict[str, list[float]]:
    """Add numbers and totals by name.

    Example:
        >>> add({'data': [1, 0.5]}, {'data': [2, 1.0], 'step': [1, 3.0]})
        {'data': [3, 1.5], 'step': [1, 3.0]}
    """
    zero = [0, 0.0]
    return {name: [a + b for a, b in zip(before.get(name, zero), more.get(name, zero))]
            for name in {**before, **more}}


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what computes, and the device's name."""
    found = dict(gkd=__version__, Python=platform.python_version())
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if device.type == 'cuda':
        found.update(CUDA=str(torch.version.cuda), GPU=torch.cuda.get_device_name(device))
    else:
        found.update(CPU=platform.processor() or platform.machine())
    return found


def weight_sizes(model: nn.Module) -> dict[str, float]:
    """MiB of the weights of student, teacher and knowledge."""
    parts = dict(student=model)
    if isinstance(model, Distiller):
        parts = dict(student=model.student, teacher=model.teacher, knowledge=model.knowledge)
    return {name: sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers())) / MIB
            for name, part in parts.items()}


def peak_memory(device: torch.device) -> float:
    """Most memory used so far in MiB: of the GPU, or else of the process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / MIB
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
