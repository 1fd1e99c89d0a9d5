"""Keep what evaluations measure, and notice one that was interrupted, under MMEngine."""

from __future__ import annotations

import os.path as osp
from numbers import Real
from typing import Any, Optional

from mmengine.hooks import EarlyStoppingHook

from gkd.collectives import all_gather
from gkd.engine.loop import is_evaluated, trained
from gkd.resume import evaluations, keep_evaluation
from gkd.work_dir import without_prefixes


def keep_metrics(runner, metrics: dict[str, Any]) -> None:
    """Keep the metrics of the epoch (or iteration) that has ended, in ``evaluation.json``."""
    if runner.rank == 0:
        keep_evaluation(runner.work_dir, trained(runner.train_loop)[0], {
            name: float(value) for name, value in without_prefixes(metrics).items()
            if isinstance(value, Real)})


def is_evaluation_missing(runner, folder: str) -> bool:
    """Whether the evaluation that a resumed run begins after was interrupted.

    Args:
        runner: The runner, between two epochs (or iterations) or after the last one.
        folder: Where its checkpoints are; one from elsewhere was evaluated there.
    """
    start = runner._load_from
    elsewhere = start is not None and osp.dirname(osp.abspath(start)) != osp.abspath(folder)
    done = trained(runner.train_loop)[0]
    known = elsewhere or str(done) in evaluations(runner.work_dir, done)
    # The first process decides: others may see the folder a little later.
    return not all_gather(known)[0] and runner.val_loop is not None and (
        is_evaluated(runner.train_loop))


def tell_early_stopping(runner, kept: dict[str, dict[str, float]]) -> None:
    """Tell hooks that end a training early of the evaluations before it was resumed.

    MMEngine keeps nothing of such a hook in a checkpoint: it would begin to wait anew, and a
    training that it had ended would go on.

    Args:
        runner: The runner, before it trains on.
        kept: Metrics of the evaluations, by epoch (or iteration).
    """
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            for _, metrics in sorted(kept.items(), key=lambda item: int(item[0])):
                score = kept_metric(metrics, hook.monitor)
                if score is not None:
                    hook.after_val_epoch(runner, {hook.monitor: score})


def kept_metric(metrics: dict[str, float], name: str) -> Optional[float]:
    """A metric as it is kept, by MMEngine's name; None if it is not there.

    Example:
        >>> kept_metric({'bbox_mAP': 0.5}, 'coco/bbox_mAP')
        0.5
    """
    return metrics.get(name, metrics.get(name.rpartition('/')[2]))
