"""Losses that are not finite, under mmcv's runner: named, kept, and stopped at or skipped."""

from __future__ import annotations

import copy
import math
from typing import Any

from mmcv.parallel import DataContainer
from mmcv.runner import HOOKS, OptimizerHook

from gkd.compat.wrapper import unwrap
from gkd.finite.hook import LossGuard


@HOOKS.register_module()
class FiniteLossHook(LossGuard):
    """End a run whose loss is NaN or infinite before it spoils the weights, or skip such steps.

    The step is kept in ``WORK_DIR/not_finite_epoch_E_iter_I_rank_R.safetensors`` as every process
    saw it; ``tools/replay.py`` runs it again. Losses are means over all processes, so that all of
    them stop or skip together.

    Args:
        skip: Steps that may be skipped in one run; after that, and by default, the run ends.
    """

    PRIORITY = 'HIGH'  # before the optimiser's hook
    clipping = 'optimizer_config.grad_clip'

    def __init__(self, skip: int = 0):
        super().__init__(skip)
        self.skipping = False
        self.boxes: dict[str, Any] = {}

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
        self.remember(unwrap(runner.model))
        # YOLOX scales the boxes in place, which on a CPU are those of the batch.
        self.boxes = {name: copy.deepcopy(value) for name, value in runner.data_batch.items()
                      if name == 'gt_bboxes'}

    def after_train_iter(self, runner) -> None:
        """Look at the losses, which are on the CPU already."""
        losses = runner.outputs['log_vars']
        self.skipping = not all(map(math.isfinite, losses.values()))
        if self.skipping:
            self.refuse(runner, unwrap(runner.model), runner.inner_iter + 1,
                        plain({**runner.data_batch, **self.boxes}), dict(losses))


def plain(batch: Any) -> Any:
    """A batch as a detector takes it, without the containers for several GPUs."""
    if isinstance(batch, DataContainer):
        return batch.data[0]
    if isinstance(batch, dict):
        return {name: plain(value) for name, value in batch.items()}
    return batch
