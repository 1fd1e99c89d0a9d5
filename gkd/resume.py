"""What an exact resume needs under either MMDetection: start, state, files and seeds."""

from __future__ import annotations

import json
import logging
import os.path as osp
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
from torch import nn

from gkd.bank import PrototypeBank
from gkd.errors import CheckpointError, DataError
from gkd.files import write_atomically
from gkd.module_state import restore_module_state
from gkd.randomness import SeededIndex
from gkd.work_dir import EVALUATION, INSIDE, progress_of

KEY = 'resume'  # of the state: in a checkpoint (MMDetection 3) or in its `meta` (MMDetection 2)
KEPT_INSIDE = 2
# What a whole training starts with: the first of them that is set.
START_SETTINGS = ('resume_from', 'load_from')


def start_of(config: dict) -> Optional[str]:
    """The whole model's checkpoint that a training starts with, None without one.

    Example:
        >>> start_of(dict(load_from='a.pth', resume_from=None)), start_of({})
        ('a.pth', None)
    """
    return next((config[name] for name in START_SETTINGS if config.get(name)), None)


@contextmanager
def explaining_mismatch(checkpoint: str, work_dir: str) -> Iterator[None]:
    """Explain where a checkpoint that does not fit comes from, if it was found in the work dir.

    Args:
        checkpoint: The file that the block resumes from.
        work_dir: Work dir of the run.

    Raises:
        CheckpointError: That of the block, with the explanation appended.
    """
    try:
        yield
    except CheckpointError as error:
        if osp.dirname(osp.abspath(checkpoint)) != osp.abspath(work_dir):
            raise
        raise CheckpointError(
            f'{error}\nIt lies in the work dir, so the training would resume from it, but it is '
            f'of another config. To keep it: another --work-dir; to start anew: --resume never.'
        ) from error


def hook_states(hooks: Iterable) -> dict[str, Any]:
    """States of the hooks that have some, by the names of their classes."""
    return {type(hook).__name__: hook.state_dict() for hook in hooks
            if hasattr(hook, 'state_dict')}


def restore_hooks(hooks: Iterable, state: dict) -> None:
    """Put back the states of hooks that a checkpoint's state holds."""
    kept = state.get('hooks', {})  # earlier releases did not keep them with MMDetection 3
    for hook in hooks:
        if type(hook).__name__ in kept:
            hook.load_state_dict(kept[type(hook).__name__])


def restore_model(model: nn.Module, state: dict, rank: int) -> None:
    """Put back what a checkpoint's state holds of a model besides its weights.

    Args:
        model: The model without its data-parallel wrapper.
        state: The state in the checkpoint.
        rank: Number of this process.
    """
    if state['bank'] is not None:
        device = next(model.parameters()).device
        model.bank = PrototypeBank.from_state_dict(state['bank']).to(device)
    kept = state.get('modules')  # earlier releases did not keep them
    if kept:
        restore_module_state(model, kept[rank % len(kept)])


def remove_inside(folder: str, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints inside epochs.

    Newest by the time of writing: a run that went back to an earlier epoch finds later ones.

    Args:
        folder: Where the checkpoints are.
        keep: How many stay.
    """
    found = sorted((path for path in Path(folder).glob(INSIDE.format('*', '*'))
                    if progress_of(path)),
                   key=lambda path: (path.stat().st_mtime_ns, progress_of(path)))
    for path in found[:max(len(found) - keep, 0)]:
        path.unlink()


def evaluations(work_dir: str, epochs: int) -> dict[str, dict[str, float]]:
    """Metrics of a run by epoch, from 1.

    Args:
        work_dir: That of the run.
        epochs: How many are done; metrics of later ones are of a run that was thrown away.

    Raises:
        DataError: The file does not hold metrics by epoch.
    """
    path = osp.join(work_dir, EVALUATION)
    if not osp.isfile(path):
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            return {epoch: dict(metrics) for epoch, metrics in json.load(file).items()
                    if int(epoch) <= epochs}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{path} does not hold metrics by epoch ({error}). Move it away; the run '
                        f'resumes without it.') from error


def keep_evaluation(work_dir: str, epoch: int, metrics: dict[str, float]) -> None:
    """Add the metrics of an epoch, from 1, to those of the epochs before it."""
    write_evaluations(work_dir, {**evaluations(work_dir, epoch - 1), str(epoch): metrics})


def forget_evaluations(work_dir: str, epochs: int) -> None:
    """Drop the metrics of all but the first ``epochs``: a run that begins there has not got them.

    If its next evaluation were interrupted, it would be taken for done.
    """
    if osp.isfile(osp.join(work_dir, EVALUATION)):
        write_evaluations(work_dir, evaluations(work_dir, epochs))


def write_evaluations(work_dir: str, metrics: dict[str, dict[str, float]]) -> None:
    """Write metrics by epoch into a work dir."""
    write_atomically(osp.join(work_dir, EVALUATION), json.dumps(metrics, indent=2))


def with_seeds(indices: Sequence[int], seed: int, rank: int, epoch: int) -> list[SeededIndex]:
    """Give every image of an epoch the seed of its augmentation.

    Args:
        indices: Of the images, in their order.
        seed: Seed of the run.
        rank: Number of this process.
        epoch: Number of the epoch, from 0.
    """
    seeds = np.random.default_rng([seed, rank, epoch]).integers(2 ** 32, size=len(indices))
    return [SeededIndex.of(index, int(seed)) for index, seed in zip(indices, seeds)]


def batches_done(state: dict, length: int) -> int:
    """Batches of the running epoch that a run leaves out: the part of it that was done.

    Args:
        state: The state in the checkpoint.
        length: Iterations of an epoch of the run.

    Example:
        >>> batches_done(dict(batches=3, length=8), 4)
        1
    """
    return state['batches'] * length // state['length']


def is_same_setup(state: dict, processes: int, length: int, logger: logging.Logger) -> bool:
    """Whether a run has as many processes and iterations as the checkpoint; warns if not.

    Only then do the random states of the checkpoint belong to the processes of the run.

    Args:
        state: The state in the checkpoint.
        processes: How many the run has.
        length: Iterations of an epoch of the run.
        logger: Where the warning goes.
    """
    if len(state['random']) == processes and state['length'] == length:
        return True
    logger.warning(
        f'The checkpoint is of {len(state["random"])} process(es) with {state["length"]} '
        f'iterations per epoch, this run has {processes} with {length}: it continues from '
        f'there, with other images in a step.')
    return False
