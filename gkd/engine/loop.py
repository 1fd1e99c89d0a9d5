"""Trainings of MMEngine that count iterations, in epochs: passes through the data set."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from itertools import islice
from math import ceil
from typing import Any, Optional

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from gkd.detectors.entries import name_of
from gkd.errors import ConfigError


@LOOPS.register_module()
class IterationTrainLoop(EpochBasedTrainLoop):
    """Train for a number of iterations; every pass through the data set is an epoch to the hooks.

    It is MMEngine's ``IterBasedTrainLoop``, with the same settings and the same images in the same
    order, but for one thing: there the whole training is a single epoch. The last epoch ends early
    where the iterations are not whole passes.

    Args:
        runner: MMEngine's runner.
        dataloader: The loader of the training data, or its config.
        max_iters: Iterations of the training.
        val_begin: The first iteration that may be followed by an evaluation.
        val_interval: Iterations between two evaluations; the last one is followed by one as well.
        dynamic_intervals: Pairs of an iteration and the interval from there on.

    Raises:
        ConfigError: ``max_iters`` is no whole number.
    """

    def __init__(self, runner: Any, dataloader: Any, max_iters: int, val_begin: int = 1,
                 val_interval: int = 1000,
                 dynamic_intervals: Optional[list[tuple[int, int]]] = None):
        if max_iters != int(max_iters):
            raise ConfigError(f'train_cfg.max_iters = {max_iters}: must be a whole number.')
        super().__init__(runner, dataloader, 0, val_begin, val_interval, dynamic_intervals)
        if isinstance(self.dataloader.batch_sampler.sampler, InfiniteSampler):
            vars(self.dataloader)['batch_sampler'] = Passes(self)  # torch refuses an assignment
        self._max_iters = int(max_iters)
        self._max_epochs = ceil(self._max_iters / len(self.dataloader))

    def run(self) -> Any:
        """Train; returns the model."""
        self.runner.call_hook('before_train')
        while self._iter < self._max_iters and not self.stop_training:
            self.run_epoch()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for a pass through the data set, and evaluate where it is due."""
        self.runner.call_hook('before_train_epoch')
        for batch in self.dataloader:
            self.runner.model.train()
            self.run_iter(self._iter, batch)
            if self.runner.val_loop is not None and is_evaluated(self):
                self.runner.val_loop.run()
            if self._iter >= self._max_iters or self.stop_training:
                break
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _decide_current_val_interval(self) -> None:
        # As MMEngine does, of iterations.
        step = bisect(self.dynamic_milestones, self._iter + 1)
        self.val_interval = self.dynamic_intervals[step - 1]


class Passes:
    """A batch sampler that yields the endless batches of an ``InfiniteSampler`` pass by pass.

    A pass has as many batches as the data set fills in all processes. Where batches are of images
    of one shape, an image may slip from one pass into the next.

    Args:
        loop: The loop; its loader gives the batches, and its epoch says which pass is next.
    """

    def __init__(self, loop: IterationTrainLoop):
        self.loop = loop
        loader: DataLoader = loop.dataloader
        self.batches: BatchSampler = loader.batch_sampler
        self.length = ceil(len(loader.dataset) / (self.batches.batch_size * get_world_size()))
        self.endless: Optional[Iterator[list[int]]] = None
        self.drawn = 0  # batches

    def __len__(self) -> int:
        return self.length

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)['batches'], name)

    def __iter__(self) -> Iterator[list[int]]:
        if self.endless is None:
            self.endless = iter(self.batches)
        # A resumed run leaves out the passes that are done.
        start = max(self.loop.epoch * self.length - self.drawn, 0)
        self.drawn += start + self.length
        yield from [*islice(self.endless, start, start + self.length)]


def in_epochs(loop: dict) -> dict:
    """Settings of a training loop, of the one above instead of MMEngine's that counts iterations.

    Args:
        loop: ``train_cfg`` of a config.
    """
    if name_of(loop.get('type')) != 'IterBasedTrainLoop' and loop.get('by_epoch', True):
        return loop
    settings = {name: value for name, value in loop.items() if name != 'by_epoch'}
    return {**settings, 'type': IterationTrainLoop}


def trained(loop: EpochBasedTrainLoop) -> tuple[int, int]:
    """Epochs of a loop that are done, and those in all; or iterations if it counts those."""
    if isinstance(loop, IterationTrainLoop):
        return loop.iter, loop.max_iters
    return loop.epoch, loop.max_epochs


def is_evaluated(loop: EpochBasedTrainLoop) -> bool:
    """Whether a loop evaluates what it has trained so far."""
    loop._decide_current_val_interval()
    done, end = trained(loop)
    return done >= max(1, loop.val_begin) and (done % loop.val_interval == 0 or done == end)
