"""Losses that are not finite, under MMEngine: named, kept, and stopped at or skipped."""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.distributed as dist
from mmengine.registry import HOOKS
from torch import Tensor, nn

from gkd.compat.wrapper import unwrap
from gkd.finite.hook import LossGuard


@HOOKS.register_module()
class FiniteLossHook(LossGuard):
    """End a run whose loss is NaN or infinite before it spoils the weights, or skip such steps.

    The step is kept in ``WORK_DIR/not_finite_epoch_E_iter_I_rank_R.safetensors`` as every process
    saw it; ``tools/replay.py`` runs it again. MMEngine does not average losses over processes, so
    the processes exchange whether a loss is not finite: all of them stop or skip together.

    Args:
        skip: Steps that may be skipped in one run; after that, and by default, the run ends.
    """

    priority = 'HIGH'
    clipping = 'optim_wrapper.clip_grad'

    def __init__(self, skip: int = 0):
        super().__init__(skip)
        self.batch: dict[str, Any] = {}
        self.losses: dict[str, Tensor] = {}

    def before_train(self, runner) -> None:
        """Install the check of the losses between the forward pass and the optimiser's step."""
        model = unwrap(runner.model)
        model.register_forward_pre_hook(self.remember_batch, with_kwargs=True)
        model.parse_losses = self.remembering(model.parse_losses)
        runner.optim_wrapper.update_params = self.guarded(runner,
                                                          runner.optim_wrapper.update_params)

    def remember_batch(self, model: nn.Module, args: tuple, batch: dict[str, Any]) -> None:
        """Remember the preprocessed batch before a forward pass, which may change it."""
        if batch.get('mode') == 'loss':
            self.batch = {name: part for name, part in batch.items() if name != 'mode'}
            self.remember(model)

    def remembering(self, parse: Callable) -> Callable:
        """Wrap ``parse_losses`` to keep the losses that it names."""
        def parse_losses(losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
            total, self.losses = parse(losses)
            return total, self.losses
        return parse_losses

    def guarded(self, runner, update: Callable) -> Callable:
        """Wrap ``update_params`` so that it never gets a loss that is not finite."""
        def update_params(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            batch, self.batch = self.batch, {}  # the GPU needs the room for the next one
            broken = ~loss.detach().isfinite().all()
            if dist.is_initialized():
                broken = broken.to(torch.uint8)
                dist.all_reduce(broken, op=dist.ReduceOp.MAX)
            if broken:
                done = runner.iter - runner.epoch * len(runner.train_dataloader)
                self.refuse(runner, unwrap(runner.model), done + 1, batch,
                            {name: value.item() for name, value in self.losses.items()})
            else:
                update(loss, *args, **kwargs)
        return update_params
