"""What an exact resume needs under either MMDetection: the state's place, its files, and seeds."""

from __future__ import annotations

import logging
import os.path as osp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gkd.errors import CheckpointError
from gkd.randomness import SeededIndex
from gkd.work_dir import INSIDE, progress_of

KEY = 'resume'  # of the state: in a checkpoint (MMDetection 3) or in its `meta` (MMDetection 2)
KEPT_INSIDE = 2


@contextmanager
def going_on(checkpoint: str, work_dir: str) -> Iterator[None]:
    """Say whose a checkpoint is that does not fit, if nobody but the work dir has named it.

    Args:
        checkpoint: The file that the block goes on from.
        work_dir: That of the run.

    Raises:
        CheckpointError: The block's, with more to it.
    """
    try:
        yield
    except CheckpointError as error:
        if osp.dirname(osp.abspath(checkpoint)) != osp.abspath(work_dir):
            raise
        raise CheckpointError(
            f'{error}\nIt lies in the work dir, so that the training would go on from it, but is '
            f'of another config. To keep it: another --work-dir; to begin anew: --resume never.'
        ) from error


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
        f'iterations an epoch, this run has {processes} with {length}: it goes on from there, '
        f'with other images in a step.')
    return False
