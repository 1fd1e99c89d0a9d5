"""Losses that are not finite: named, kept for a replay, and stopped at or skipped."""

from __future__ import annotations

import math
import os.path as osp
from typing import Any

import torch
from mmcv import Config
from mmcv.parallel import DataContainer
from mmcv.runner import HOOKS, Hook, OptimizerHook

from gkd.commands.layout import place
from gkd.compat.checkpoint import load_checkpoint_file, load_strictly
from gkd.compat.wrapper import unwrap
from gkd.errors import CheckpointError, NumericalError
from gkd.files import written_whole
from gkd.finite import end_of_run
from gkd.prototypes import PrototypeBank
from gkd.randomness import random_state, set_random_state
from gkd.running.config import build_model

CLIPPING = 'optimizer_config.grad_clip'


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """End a run whose loss is NaN or infinite before it spoils the weights, or skip such steps.

    The step is kept in ``WORK_DIR/not_finite_epoch_E_iter_I_rank_R.pth`` as every process saw it;
    :func:`replay` runs it again. Losses are means over all processes, so that all of them stop or
    skip together.

    Args:
        skip: Steps that may be skipped in one run; after that, and by default, the run ends.
    """

    PRIORITY = 'HIGH'  # before the optimiser's hook

    def __init__(self, skip: int = 0):
        self.skip = skip
        self.skipped = 0
        self.skipping = False
        self.before: dict = {}
        self.statistics: list = []

    def before_run(self, runner) -> None:
        """Let the optimiser's hook pass over steps that are skipped."""
        for hook in runner.hooks:
            if isinstance(hook, OptimizerHook):
                hook.after_train_iter = self.unless_skipped(hook.after_train_iter)

    def unless_skipped(self, step):
        """The optimiser's step, left out while a step is skipped."""
        def guarded(runner):
            if not self.skipping:
                step(runner)
        return guarded

    def before_train_iter(self, runner) -> None:
        """Remember what the forward pass will change."""
        self.before = random_state()
        if self.skip:
            self.statistics = [buffer.clone() for buffer in unwrap(runner.model).buffers()]

    def after_train_iter(self, runner) -> None:
        """Look at the losses, which are on the CPU already."""
        losses = runner.outputs['log_vars']
        broken = [f'{name} = {value}' for name, value in losses.items()
                  if not math.isfinite(value) and name != 'loss'] or \
            [f'loss = {value}' for name, value in losses.items()
             if name == 'loss' and not math.isfinite(value)]
        self.skipping = bool(broken)
        if not broken:
            return
        path = osp.join(runner.work_dir, f'not_finite_epoch_{runner.epoch + 1}_iter_'
                                         f'{runner.inner_iter + 1}_rank_{runner.rank}.pth')
        self.keep_step(runner, path)
        message = (f'{", ".join(broken)} at epoch {runner.epoch + 1}, iteration '
                   f'{runner.inner_iter + 1} (step {runner.iter + 1} of the run). The step is '
                   f'kept: python tools/replay.py CONFIG {path}')
        if self.skipped == self.skip:
            raise NumericalError(f'{message}\n{end_of_run(self.skipped, CLIPPING)}')
        self.skipped += 1
        for buffer, value in zip(unwrap(runner.model).buffers(), self.statistics):
            buffer.copy_(value)
        runner.logger.warning(f'{message}\nSkipped {self.skipped} of at most {self.skip} steps.')

    def keep_step(self, runner, path: str) -> None:
        """Write what is needed to run the step again."""
        model = unwrap(runner.model)
        bank = getattr(model, 'bank', None)
        with written_whole(path) as file:
            torch.save(dict(
                state_dict=model.state_dict(), batch=plain(runner.data_batch), random=self.before,
                losses=dict(runner.outputs['log_vars']), epoch=runner.epoch, iter=runner.iter,
                bank=None if bank is None else bank.state_dict(),
                progress=getattr(model, 'progress', None)), file)


def plain(batch: Any) -> Any:
    """A batch as a detector takes it, without the containers for several GPUs."""
    if isinstance(batch, DataContainer):
        return batch.data[0]
    if isinstance(batch, dict):
        return {name: plain(value) for name, value in batch.items()}
    return batch


def replay(config: Config, path: str) -> dict[str, float]:
    """Run a step again that :class:`FiniteLossHook` kept, on the CPU.

    Args:
        config: The config of the run.
        path: The file.

    Returns:
        The losses of this process by name, in order; ``loss`` is their sum.

    Raises:
        CheckpointError: The file is no such step, or is of another model.
    """
    step = load_checkpoint_file(path)
    if not {'state_dict', 'batch', 'random'} <= step.keys():
        raise CheckpointError(f'{path} holds no step; name a file not_finite_*.pth of a run.')
    model = place(build_model(config), torch.device('cpu'), config)
    load_strictly(model, step, path)
    model.train()
    if step['bank'] is not None:
        model.bank = PrototypeBank.from_state_dict(step['bank'])
    if step['progress'] is not None:
        model.progress = step['progress']
    set_random_state(step['random'])
    with torch.no_grad():
        return dict(model.train_step(step['batch'], None)['log_vars'])
