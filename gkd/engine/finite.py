"""Losses that are not finite, under MMEngine: named, and stopped at or skipped."""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from gkd.compat.wrapper import unwrap
from gkd.errors import NumericalError
from gkd.finite import end_of_run

CLIPPING = 'optim_wrapper.clip_grad'


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """End a run whose loss is NaN or infinite before it spoils the weights, or skip such steps.

    MMEngine does not average losses over processes, so the processes tell each other: all of them
    stop or skip together.

    Args:
        skip: Steps that may be skipped in one run; after that, and by default, the run ends.
    """

    priority = 'HIGH'

    def __init__(self, skip: int = 0):
        self.skip = skip
        self.skipped = 0
        self.losses: dict[str, Tensor] = {}

    def before_train(self, runner) -> None:
        """Look at the losses between the forward pass and the step of the optimiser."""
        model = unwrap(runner.model)
        model.parse_losses = self.remembering(model.parse_losses)
        runner.optim_wrapper.update_params = self.guarded(runner,
                                                          runner.optim_wrapper.update_params)

    def remembering(self, parse: Callable) -> Callable:
        """Wrap ``parse_losses`` to keep the losses that it names."""
        def parse_losses(losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
            total, self.losses = parse(losses)
            return total, self.losses
        return parse_losses

    def guarded(self, runner, update: Callable) -> Callable:
        """Wrap ``update_params`` so that it never gets a loss that is not finite."""
        def update_params(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            broken = ~loss.detach().isfinite().all()
            if dist.is_initialized():
                broken = broken.to(torch.uint8)
                dist.all_reduce(broken, op=dist.ReduceOp.MAX)
            if broken:
                self.refuse(runner)
            else:
                update(loss, *args, **kwargs)
        return update_params

    def refuse(self, runner) -> None:
        """End the run or, if such steps may be skipped, skip this one."""
        broken = [f'{name} = {float(value)}' for name, value in self.losses.items()
                  if name != 'loss' and not torch.isfinite(value).all()]
        done = runner.iter - runner.epoch * len(runner.train_dataloader)
        message = (f'{", ".join(broken) or "the loss of another process"} is not finite at epoch '
                   f'{runner.epoch + 1}, iteration {done + 1} (step {runner.iter + 1} of all).')
        if self.skipped == self.skip:
            raise NumericalError(f'{message}\n{end_of_run(self.skipped, CLIPPING)}')
        self.skipped += 1
        runner.logger.warning(f'{message} Skipped {self.skipped} of at most {self.skip} steps.')
