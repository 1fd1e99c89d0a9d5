"""Start a training: with given weights, or from a checkpoint of an earlier run."""

from __future__ import annotations

import math
import os.path as osp
from typing import Optional

from mmcv import Config
from mmcv.runner import BaseRunner

from gkd.commands.resume import nothing_left
from gkd.errors import CheckpointError
from gkd.resume import explaining_mismatch
from gkd.running.changes import (
    NEW_OPTIMIZER,
    apply_optimizer,
    has_other_optimizer,
    log_changes,
    optimizer_settings,
    resume_without_optimizer,
)
from gkd.running.evaluation import EvaluationRecorder, MissedEvaluation
from gkd.running.resume import KEY
from gkd.running.runner import IterationRunner, trained
from gkd.work_dir import checkpoints


def load_or_resume(runner: BaseRunner, config: Config, checkpoint: Optional[str],
                   recorder: Optional[EvaluationRecorder], device: str,
                   new_optimizer: bool = False) -> None:
    """Resume from a checkpoint, or start with the weights of ``config.load_from``.

    Args:
        runner: The runner with all its hooks.
        config: The config.
        checkpoint: The checkpoint to resume from; None starts anew.
        recorder: Knows whether the checkpoint's epoch was evaluated.
        device: Where tensors go.
        new_optimizer: Whether to apply the config's settings of the optimiser.

    Raises:
        CheckpointError: The checkpoint does not fit, or its optimiser is of another type.
    """
    if checkpoint is None:
        if config.get('load_from'):
            runner.load_checkpoint(config.load_from)
        return
    resume(runner, config, checkpoint, device, new_optimizer)
    counts_iterations = isinstance(runner, IterationRunner)
    at_end = counts_iterations or not runner.meta.get(KEY, {}).get('batches')
    own = {runner.work_dir, *(osp.dirname(osp.abspath(path))
                              for path in checkpoints(runner.work_dir))}
    if recorder and at_end and osp.dirname(osp.abspath(checkpoint)) in own:
        runner.register_hook(MissedEvaluation(recorder), priority=MissedEvaluation.PRIORITY)
    length = runner.max_iters if counts_iterations else runner.max_epochs
    if trained(runner) >= (length or math.inf):
        runner.logger.info(nothing_left(
            checkpoint, f'{trained(runner)} {"iterations" if counts_iterations else "epochs"}'))


def resume(runner: BaseRunner, config: Config, checkpoint: str, device: str,
           new_optimizer: bool) -> None:
    """Load weights, optimiser and counts of a checkpoint; arguments as above.

    Raises:
        CheckpointError: The checkpoint does not fit, or its optimiser is of another type.
    """
    text, settings = runner.meta['config'], optimizer_settings(runner)
    with explaining_mismatch(checkpoint, runner.work_dir):
        state = resume_without_optimizer(runner, checkpoint, device)
    before, runner.meta['config'] = runner.meta.get('config'), text
    other = has_other_optimizer(before, config)
    if other and not new_optimizer:
        raise CheckpointError(f'{checkpoint} holds the state of another optimiser than '
                              f'optimizer.type = {config.optimizer.type}. Begin with the new one, '
                              f'without state: {NEW_OPTIMIZER}')
    if state and not other:
        runner.optimizer.load_state_dict(state)
    if new_optimizer:
        apply_optimizer(runner, settings)
    log_changes(runner, before, text, new_optimizer)
