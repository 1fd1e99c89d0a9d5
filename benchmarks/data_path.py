"""Where the time of the quickstart's training goes, and what the networks' step is made of.

The first table times the parts of a whole training of the distilled student, as ``tools/train.py``
runs it. A GPU is waited for after every part; so the share of waiting for images comes from
another training before it, in which the GPU is not waited for. The second table is torch's profile
of training steps: how much of them is the networks' arithmetic, operator by operator.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import Callable
from unittest import mock

import inputs
import measure
import torch
from mmcv.runner import CheckpointHook, EpochBasedRunner, LoggerHook
from mmdet.core import EvalHook
from mmdet.models.detectors import BaseDetector
from step_overhead import quickstart_step
from torch.profiler import ProfilerActivity, profile
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gkd.distiller import Distiller
from gkd.knowledge import RobustDistillingModule
from gkd.prototypes import PrototypeHook
from gkd.running import train

PARTS = {
    'loading images': [(_BaseDataLoaderIter, '__next__')],
    'student: forward and detection losses': [(Distiller, 'student_step')],
    'teacher: forward': [(Distiller, 'teacher_step')],
    'knowledge: forward, adaptation included': [(RobustDistillingModule, 'forward')],
    'backward': [(torch.Tensor, 'backward')],
    'optimiser': [(torch.optim.AdamW, 'step')],
    'summing losses for the log': [(BaseDetector, '_parse_losses')],
    'logging': [(LoggerHook, 'after_train_iter'), (LoggerHook, 'after_train_epoch')],
    'prototypes': [(PrototypeHook, 'before_train_epoch')],
    'evaluation': [(EvalHook, '_do_evaluate')],
    'checkpoints': [(CheckpointHook, '_save_checkpoint')],
}

# What the networks consist of, by the operators that do the arithmetic.
ARITHMETIC = {
    'convolutions': ('convolution', 'conv2d'),
    'matrix products': ('addmm', 'aten::mm', 'bmm', 'linear'),
    'batch norm': ('batch_norm',),
    'activations': ('relu', 'hardtanh', 'clamp', 'threshold', 'sigmoid'),
    'pooling and upsampling': ('pool', 'upsample', 'roi_align'),
}


class Stopwatch:
    """Sum up the seconds spent in named functions; what one calls inside another counts once.

    Args:
        waits: Whether a GPU is waited for around each function, so that its work counts there;
            else the host's time counts, as in a training.
    """

    def __init__(self, waits: bool):
        self.seconds = defaultdict(float)
        self.running = False
        self.wait = measure.synchronise if waits else lambda: None

    def around(self, function: Callable, name: str) -> Callable:
        """The function, timed under a name."""
        @functools.wraps(function)
        def timed(*args, **kwargs):
            if self.running:
                return function(*args, **kwargs)
            self.running = True
            self.wait()
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.wait()
                self.seconds[name] += time.perf_counter() - started
                self.running = False

        return timed

    @contextmanager
    def watching(self, parts: dict):
        """Time the methods ``(class, name)`` of every part."""
        with ExitStack() as stack:
            for name, methods in parts.items():
                for owner, method in methods:
                    timed = self.around(getattr(owner, method), name)
                    stack.enter_context(mock.patch.object(owner, method, timed))
            yield


def time_training(family: str, epochs: int, waits: bool) -> dict:
    """Time the parts of a training of the distilled student; see :class:`Stopwatch`."""
    config = inputs.quickstart_config(family)
    config.runner.max_epochs = epochs
    watch = Stopwatch(waits)
    total = 0.

    def run(self, *args, **kwargs):
        nonlocal total
        started = time.perf_counter()
        whole(self, *args, **kwargs)
        measure.synchronise()
        total = time.perf_counter() - started

    whole = EpochBasedRunner.run
    with tempfile.TemporaryDirectory() as work_dir, watch.watching(PARTS), \
            mock.patch.object(EpochBasedRunner, 'run', run):
        config.work_dir = work_dir
        train(config, resume='never')
    seconds = {name: watch.seconds[name] for name in PARTS}
    seconds['rest'] = total - sum(seconds.values())
    return dict(family=family, epochs=epochs, total=total, seconds=seconds)


def profile_step(family: str, steps: int) -> dict:
    """Seconds a step of every kind of operator, from torch's profiler."""
    step = quickstart_step(family)
    step.whole()
    on_gpu = measure.device().type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    measure.synchronise()
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            step.whole()
        measure.synchronise()
        total = time.perf_counter() - started
    seconds, others = defaultdict(float), defaultdict(float)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in ARITHMETIC.items()
                     if any(name in event.key for name in names)), None)
        if on_gpu and event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel, whose time its operator has
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent = own / 1e6 / steps
        if kind is None:
            others[event.key] += spent
        else:
            seconds[kind] += spent
    seconds['everything else'] = total / steps - sum(seconds.values())
    largest = dict(sorted(others.items(), key=lambda item: -item[1])[:12])
    return dict(family=family, steps=steps, total=total / steps, seconds=dict(seconds),
                largest_of_everything_else=largest)


def shares(rows: list[dict], title: str, name: str) -> None:
    """Report seconds and shares of the parts of every row."""
    lines = [dict(family=row['family'], part=part, seconds=seconds, share=seconds / row['total'])
             for row in rows for part, seconds in row['seconds'].items()]
    measure.report(name, lines, {
        'family': lambda line: line['family'],
        'part': lambda line: line['part'],
        'seconds': lambda line: f'{line["seconds"]:.3f}',
        'share': lambda line: f'{line["share"]:.1%}',
    }, title)


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--families', nargs='+', choices=inputs.FAMILIES,
                        default=list(inputs.FAMILIES))
    parser.add_argument('--epochs', type=int, default=2, help='epochs to train')
    parser.add_argument('--steps', type=int, default=5, help='steps to profile')
    measure.add_device_option(parser)
    args = parser.parse_args()
    if measure.device().type == 'cuda':
        for family in args.families:
            row = time_training(family, args.epochs, waits=False)
            print(f'{family}: {row["total"]:.1f} s in all, of which '
                  f'{row["seconds"]["loading images"] / row["total"]:.1%} waiting for images')
    shares([time_training(family, args.epochs, waits=True) for family in args.families],
           f'Training of the distilled student, {args.epochs} epochs', 'data_path')
    profiles = [profile_step(family, args.steps) for family in args.families]
    shares(profiles, 'One training step, operator by operator', 'data_path_operators')
    for row in profiles:
        print(f'\n{row["family"]}, largest of everything else (s): '
              + json.dumps({name: round(seconds, 4) for name, seconds
                            in row['largest_of_everything_else'].items()}))


if __name__ == '__main__':
    main()
