"""Trainings of mmcv's runner that count iterations, in epochs: passes through the data set."""

from __future__ import annotations

import os.path as osp
from math import ceil
from typing import Any, Optional

import mmcv
from mmcv import Config
from mmcv.runner import (
    RUNNERS,
    BaseRunner,
    EpochBasedRunner,
    IterBasedRunner,
    save_checkpoint,
)
from torch.utils.data import DataLoader

from gkd.work_dir import LATEST


@RUNNERS.register_module()
class IterationRunner(EpochBasedRunner, IterBasedRunner):
    """Train for a number of iterations; every pass through the data set is an epoch to the hooks.

    It takes the place of mmcv's ``IterBasedRunner``, to which no epoch ever begins. The last epoch
    ends early where the iterations are not whole passes. As there, hooks count iterations unless
    they get ``by_epoch=True``.
    """

    resume = BaseRunner.resume  # the other forgets what a checkpoint's `meta` holds

    def run(self, data_loaders: list[DataLoader], workflow: list[tuple[str, int]],
            **settings: Any) -> None:
        """Train.

        Args:
            data_loaders: The loader of the training data.
            workflow: Training alone.
            **settings: None are known.
        """
        self.data_loader, = data_loaders
        self._max_epochs = ceil(self._max_iters / len(self.data_loader))
        self.logger.info(f'Training for {self._max_iters} iterations; an epoch, a pass through '
                         f'the data set, has {len(self.data_loader)}.')
        self.call_hook('before_run')
        while self.iter < self._max_iters:
            self.train(self.data_loader)
        self.call_hook('after_run')

    def train(self, data_loader: DataLoader, **settings: Any) -> None:
        """Train for a pass through the data set."""
        self.mode = 'train'
        self.call_hook('before_train_epoch')
        for self._inner_iter, self.data_batch in enumerate(data_loader):
            self.model.train()  # an evaluation may have changed it
            self.call_hook('before_train_iter')
            self.run_iter(self.data_batch, train_mode=True)
            self.call_hook('after_train_iter')
            self._iter += 1
            if self.iter >= self._max_iters:
                break
        self.call_hook('after_train_epoch')
        self._epoch += 1

    def save_checkpoint(self, out_dir: str, filename_tmpl: str = 'iter_{}.pth',
                        save_optimizer: bool = True, meta: Optional[dict] = None,
                        create_symlink: bool = True) -> None:
        """Save a checkpoint after the step of an iteration.

        Args:
            out_dir: Where.
            filename_tmpl: Its name, ``{}`` for the iterations that are done.
            save_optimizer: Whether it holds the optimiser.
            meta: What it holds besides the runner's own.
            create_symlink: Whether ``latest.pth`` is to be this one.
        """
        name = filename_tmpl.format(self.iter + 1)
        save_checkpoint(
            self.model, osp.join(out_dir, name),
            optimizer=self.optimizer if save_optimizer else None,
            meta={**(meta or {}), **(self.meta or {}), 'epoch': self.epoch, 'iter': self.iter + 1})
        if create_symlink:
            mmcv.symlink(name, osp.join(out_dir, LATEST))


def runner_type(config: Config) -> Optional[type]:
    """The runner of a config: the one above for mmcv's that counts iterations; None if unknown."""
    kind = RUNNERS.get(config.runner.get('type'))
    return IterationRunner if kind is IterBasedRunner else kind


def trained(runner: BaseRunner) -> int:
    """Epochs that are done, or iterations if the runner counts those."""
    return runner.iter if isinstance(runner, IterationRunner) else runner.epoch
