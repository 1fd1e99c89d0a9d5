"""Record what the report of a run shows but its logs do not hold."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import os.path as osp
import platform
import resource
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any, Callable, Optional

import torch
from mmcv.runner import HOOKS, EvalHook, Hook, LoggerHook
from torch import Tensor, nn

from gkd.compat.wrapper import unwrap
from gkd.distiller import Distiller
from gkd.files import written_whole
from gkd.knowledge import RobustDistillingModule
from gkd.version import __version__
from gkd.watching import watched
from gkd.work_dir import BINS, DETECTIONS, RECORD, REPORT

UNFINISHED = '.detections'
MIB = 2 ** 20
PACKAGES = ('torch', 'torchvision', 'mmcv', 'mmcv-full', 'mmdet', 'numpy', 'pycocotools')


@HOOKS.register_module()
class TrainingRecorder(Hook):
    """Record a run and leave ``WORK_DIR/report.html``.

    ``WORK_DIR/record.json`` gets for every epoch the distribution of robust weights on every level
    (of the first process), and where the time and memory of a step go.
    ``WORK_DIR/detections.bbox.json`` gets what the last evaluation detected, as COCO results. The
    methods of the detectors are timed from outside and are not changed. Values are copied from the
    GPU once in every interval of the run's loggers.
    """

    PRIORITY = 'NORMAL'  # after the optimiser's hook, before the loggers

    def __init__(self):
        self.record: dict[str, Any] = {}
        self.stopwatch: Optional[Stopwatch] = None
        self.histogram: Optional[WeightHistogram] = None
        self.evaluation: Optional[EvalHook] = None
        self.watching = ExitStack()
        self.interval = 50
        self.started = 0.0

    def before_run(self, runner) -> None:
        """Begin to watch the model; a resumed run goes on with its record."""
        self.evaluation = next((hook for hook in runner.hooks if isinstance(hook, EvalHook)), None)
        if runner.rank > 0:
            return
        if self.evaluation is not None:
            keep_results(self.evaluation, osp.join(runner.work_dir, UNFINISHED))
        self.interval = next((hook.interval for hook in runner.hooks
                              if isinstance(hook, LoggerHook)), self.interval)
        model = unwrap(runner.model)
        device = next(model.parameters()).device
        earlier = earlier_record(osp.join(runner.work_dir, RECORD), runner.epoch, runner.iter)
        self.started = time.time() - earlier.get('seconds', 0.0)
        self.record = dict(config=runner.meta.get('config', ''), seed=runner.meta.get('seed'),
                           versions=versions(device), processes=runner.world_size,
                           weights=weight_sizes(model),
                           epochs=earlier.get('epochs', {}))
        self.stopwatch = Stopwatch(device)
        self.watch(model)
        self.collect_detections(runner)

    def watch(self, model: nn.Module) -> None:
        """Time the parts of a model and look at its robust weights, until the run ends."""
        enter = self.watching.enter_context
        enter(watched(model, 'train_step', self.stopwatch.timed('forward', then='backward')))
        if not isinstance(model, Distiller):
            enter(watched(model, 'forward_train', self.stopwatch.timed('student')))
            return
        enter(watched(model.student, 'forward_train', self.stopwatch.timed('student')))
        enter(watched(model, 'teacher_step', self.stopwatch.timed('teacher')))
        for kind in model.knowledge:
            enter(watched(kind, 'forward', self.stopwatch.timed('knowledge')))
            if isinstance(kind, RobustDistillingModule) and kind.robust and not self.histogram:
                self.histogram = WeightHistogram()
                enter(watched(kind, 'forward', self.histogram.next_step))
                enter(watched(kind, 'weigh', self.histogram.look))

    def before_train_epoch(self, runner) -> None:
        """Begin the epoch's record."""
        if runner.rank == 0:
            self.collect_detections(runner)
            # The time between two epochs is not spent waiting for data.
            self.stopwatch.forget('data')

    def before_train_iter(self, runner) -> None:
        """Stop timing the wait for data, and begin to time the step."""
        if runner.rank == 0:
            self.stopwatch.stop('data')
            self.stopwatch.start('step')

    def after_train_iter(self, runner) -> None:
        """Stop timing the step; update the record at the loggers' interval."""
        if runner.rank > 0:
            return
        self.stopwatch.stop('backward')
        self.stopwatch.stop('step')
        if self.every_n_iters(runner, self.interval) or self.end_of_epoch(runner):
            self.update(runner)
        self.stopwatch.start('data')

    def update(self, runner) -> None:
        """Add what has been seen since the last time to the epoch's record and save it."""
        epoch = self.record['epochs'].setdefault(str(runner.epoch + 1), {})
        epoch['steps'] = len(runner.data_loader) if hasattr(runner, 'data_loader') else None
        epoch['time'] = add(epoch.get('time', {}), self.stopwatch.read())
        if self.stopwatch.kept:
            epoch['kept'] = self.stopwatch.kept
        if self.histogram is not None and self.histogram.counts is not None:
            epoch['robust_weights'] = self.histogram.read(epoch.get('robust_weights'))
        self.record['seconds'] = time.time() - self.started
        self.record['peak'] = max(peak_memory(self.stopwatch.device), self.record.get('peak', 0))
        save(osp.join(runner.work_dir, RECORD), self.record)

    def after_run(self, runner) -> None:
        """Let go of the model and write the report."""
        self.watching.close()
        if runner.rank > 0:
            return
        self.collect_detections(runner)
        self.record['seconds'] = time.time() - self.started
        save(osp.join(runner.work_dir, RECORD), self.record)
        # Imported here: the drawing libraries are needed now, not when a training starts.
        from gkd.report.page import write_report
        path = osp.join(runner.work_dir, REPORT)
        try:
            write_report(runner.work_dir, [], path)
            runner.logger.info(f'Report: {path}')
        except Exception as error:
            # The run is done and its checkpoints are written: it must not end as a failure.
            runner.logger.warning(
                f'{path} could not be written ({type(error).__name__}: {error}). Try again with: '
                f'python -m gkd.report {runner.work_dir}')

    def collect_detections(self, runner) -> None:
        """Put in place what an evaluation has written since the last time."""
        prefix = getattr(self.evaluation, 'eval_kwargs', {}).get('jsonfile_prefix')
        source = f'{prefix}.bbox.json'
        own = prefix == osp.join(runner.work_dir, UNFINISHED)
        kept = osp.join(runner.work_dir, DETECTIONS)
        if prefix is None or not osp.isfile(source) or osp.abspath(source) == kept:
            return
        with open(source, 'rb') as file, written_whole(kept) as copy:
            shutil.copyfileobj(file, copy)
        if own:
            os.remove(source)


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
        """End a span, if it has begun."""
        if name not in self.open:
            return
        self.spans.append((name, self.open.pop(name), self.now(name)))
        if self.device.type == 'cuda':
            more = (torch.cuda.memory_allocated(self.device) - self.held[name]) / MIB
            self.kept[name] = max(self.kept.get(name, 0.0), more)

    def forget(self, name: str) -> None:
        """Drop a span that has begun."""
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


def keep_results(evaluation: EvalHook, prefix: str) -> None:
    """Have an evaluation write what was detected as COCO results, if its data set can."""
    if 'jsonfile_prefix' in inspect.signature(evaluation.dataloader.dataset.evaluate).parameters:
        evaluation.eval_kwargs.setdefault('jsonfile_prefix', prefix)


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


def save(path: str, record: dict) -> None:
    """Write the record, whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps(record).encode('utf-8'))


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
