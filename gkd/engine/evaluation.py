"""Keep what evaluations measure, and notice one that was interrupted, under MMEngine."""

from __future__ import annotations

import os.path as osp
from numbers import Real
from typing import Any

from mmengine.runner import EpochBasedTrainLoop

from gkd.prototypes.generation import all_gather
from gkd.resume import evaluations, keep_evaluation


def keep_metrics(runner, metrics: dict[str, Any]) -> None:
    """Keep the metrics of the epoch that has ended, in ``WORK_DIR/evaluation.json``."""
    if runner.rank == 0:
        keep_evaluation(runner.work_dir, runner.epoch, {
            name.rpartition('/')[2]: float(value) for name, value in metrics.items()
            if isinstance(value, Real)})


def is_evaluation_missing(runner, folder: str) -> bool:
    """Whether the evaluation of a resumed run's last finished epoch was interrupted.

    Args:
        runner: The runner, between two epochs or after the last one.
        folder: Where its checkpoints are; one from elsewhere was evaluated there.
    """
    start = runner._load_from
    if start is not None and osp.dirname(osp.abspath(start)) != osp.abspath(folder):
        return False
    # The first process decides: others may see the folder a little later.
    done = all_gather(str(runner.epoch) in evaluations(runner.work_dir, runner.epoch))[0]
    return not done and runner.val_loop is not None and is_evaluated(runner.train_loop)


def is_evaluated(loop: EpochBasedTrainLoop) -> bool:
    """Whether a loop evaluates after the epochs that it has trained so far."""
    loop._decide_current_val_interval()
    return loop.epoch >= max(1, loop.val_begin) and (
        loop.epoch % loop.val_interval == 0 or loop.epoch == loop.max_epochs)
