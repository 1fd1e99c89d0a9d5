"""Which checkpoint of its work dir a training resumes from, and the message if it is finished."""

from __future__ import annotations

from typing import Optional

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.errors import CheckpointError
from gkd.frameworks import logger
from gkd.work_dir import checkpoints


def intact_checkpoint(work_dir: str) -> Optional[str]:
    """The newest checkpoint of a run that can be read, None if there never was one.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    damaged = []
    for path in checkpoints(work_dir):
        try:
            load_checkpoint_file(path)
        except CheckpointError as error:
            logger().warning(f'{error} Looking for the one before it.')
            damaged.append(path)
        else:
            return path
    if damaged:
        raise CheckpointError(f'no checkpoint in {work_dir} can be read: {", ".join(damaged)}. '
                              f'Restore one, or start anew with --resume never.')
    return None


def nothing_left(checkpoint: str, done: str) -> str:
    """The message of a run that resumes from the end of its training.

    Args:
        checkpoint: The checkpoint that it resumes from.
        done: How long that was trained, in words.
    """
    return (f'{checkpoint} is trained for {done} already; nothing is left to train. To train '
            f'anew: --resume never, or another --work-dir.')
