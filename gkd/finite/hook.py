"""What happens at a loss that is not finite, under either MMDetection."""

from __future__ import annotations

import math
import os.path as osp
import shlex
from typing import Any, Optional

from torch import Tensor, nn

from gkd.errors import GKDError, NumericalError
from gkd.finite.step import KeptStep
from gkd.frameworks import Hook
from gkd.module_state import Parts, counting_parts, restore_module_state, state_of
from gkd.randomness import random_state
from gkd.repository import tool


class LossGuard(Hook):
    """Keep a step whose loss is not finite; then end the run, or skip the step.

    Subclasses know where a runner computes losses.

    Args:
        skip: Steps that may be skipped in one run.

    Attributes:
        clipping: Setting that clips gradients, for messages.
    """

    clipping: str

    def __init__(self, skip: int = 0):
        self.skip = skip
        self.skipped = 0
        self.before: dict = {}
        self.parts: Optional[Parts] = None
        self.counts: dict = {}
        self.statistics: list[Tensor] = []

    def remember(self, model: nn.Module) -> None:
        """Remember what the forward pass will change.

        Args:
            model: What is trained, without a data-parallel wrapper.
        """
        self.before = random_state()
        if self.parts is None:  # to look for them in every step would take long
            self.parts = counting_parts(model, scheduled=True)
        self.counts = state_of(self.parts)
        if self.skip:
            self.statistics = [buffer.clone() for buffer in model.buffers()]

    def refuse(self, runner, model: nn.Module, iteration: int, batch: Any,
               losses: dict[str, float]) -> None:
        """Keep the step, and forget what it has changed.

        Args:
            runner: The runner.
            model: What is trained, without a data-parallel wrapper.
            iteration: Number of the step in its epoch, from 1.
            batch: What the model was called with.
            losses: Those of this process by name, ``loss`` is their sum.

        Raises:
            NumericalError: No further step may be skipped.
        """
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        terms = [name for name in broken if name != 'loss'] or broken
        what = ', '.join(f'{name} = {losses[name]}' for name in terms) or \
            'the loss of another process is not finite'
        path = osp.join(runner.work_dir, f'not_finite_epoch_{runner.epoch + 1}_iter_{iteration}'
                                         f'_rank_{runner.rank}.safetensors')
        step = KeptStep(model.state_dict(), batch, self.before, losses, *taught_with(model),
                        self.counts, runner.epoch)
        message = (f'{what} at epoch {runner.epoch + 1}, iteration {iteration} (step '
                   f'{runner.iter + 1} of the run). {kept(step, path)}')
        if self.skipped == self.skip:
            raise NumericalError(f'{message}\n{self.end_of_run()}')
        self.skipped += 1
        for buffer, value in zip(model.buffers(), self.statistics):
            buffer.copy_(value)
        restore_module_state(model, self.counts)
        runner.logger.warning(f'{message}\nSkipped {self.skipped} of at most {self.skip} steps.')

    def end_of_run(self) -> str:
        """Why the run ends, and what can be done."""
        after = f' after {self.skipped} skipped steps' if self.skipped else ''
        return (f'The run ends{after}; weights are those before this step. Usual causes: a '
                f'learning rate that is too high, no warm-up, no gradient clipping '
                f'({self.clipping}), boxes without area. To leave out such steps: custom_hooks = '
                f'[dict(type="FiniteLossHook", skip=10)].')


def taught_with(model: nn.Module) -> tuple:
    """A distiller's prototypes, progress and columns of the teacher; nothing of a detector."""
    bank = getattr(model, 'bank', None)
    return (None if bank is None else bank.state_dict(), getattr(model, 'progress', None),
            getattr(model, 'teacher_columns', None))


def kept(step: KeptStep, path: str) -> str:
    """Write a step, and say so; a full disk must not hide what is wrong with the loss."""
    try:
        step.save(path)
    except GKDError as error:
        return f'The step could not be kept: {error}.'
    return (f'The step is kept: python {tool("replay.py")} CONFIG '
            f'{shlex.quote(path)}')
