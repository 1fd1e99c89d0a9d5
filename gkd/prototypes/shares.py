"""Instance features of which each of several processes computes a share and none holds all.

Every process writes its share to a file, and every process of a node maps all these files. The
system keeps what was read in memory only once, however many processes read it, and may drop it
again.
"""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Sequence
from contextlib import suppress
from typing import Optional, Union

import torch
import torch.distributed as dist
from torch import Tensor

from gkd.collectives import all_gather, cpu_group
from gkd.errors import CheckpointError, StorageError
from gkd.files import CHECKSUM, load_tensors, map_tensors, save_tensors
from gkd.frameworks import get_dist_info, logger

ADVICE = 'The features are computed again.'

# The features of a process's share of the batches, (n, C) a level; none if it had no batch.
Share = list[Tensor]


class JointFeatures:
    """Features of all instances on one level, ``(N, C)``, in parts.

    Args:
        parts: Features of every process's instances, ``(n_r, C)``.
        part: Part that each instance is in, ``(N,)`` int64.
        place: Its row there, ``(N,)`` int64.

    Example:
        >>> features = JointFeatures([torch.zeros(2, 1), torch.ones(1, 1)],
        ...                          torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))
        >>> features[torch.tensor([1, 2])]
        tensor([[1.],
                [0.]])
    """

    def __init__(self, parts: Sequence[Tensor], part: Tensor, place: Tensor):
        self.parts = parts
        self.part = part
        self.place = place

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Features of some instances, in memory."""
        part, place = self.part[rows], self.place[rows]
        found = self.parts[0].new_empty(len(rows), self.parts[0].shape[1])
        for number, features in enumerate(self.parts):
            mine = part == number
            found[mine] = features[place[mine]]
        return found


Features = Union[Tensor, JointFeatures]


def share_path(folder: str, role: str, rank: Optional[int] = None) -> str:
    """File of a process's share, by default of this one's."""
    own, world_size = get_dist_info()
    rank = own if rank is None else rank
    return osp.join(folder, f'{role}_features_{rank}_of_{world_size}.safetensors')


def save_share(folder: str, role: str, key: str, share: Share,
               rank: Optional[int] = None) -> None:
    """Write a process's share, by default this one's; the file appears whole or not at all.

    ``key`` identifies what the features were computed from.
    """
    save_tensors(share_path(folder, role, rank),
                 {str(level): features for level, features in enumerate(share)},
                 dict(fingerprint=key))


def is_cached(folder: str, role: str, key: str) -> bool:
    """Whether this process's share lies there intact; damage is logged."""
    path = share_path(folder, role)
    if not osp.exists(path):
        return False
    try:
        tensors, metadata = load_tensors(path, ADVICE)
        if metadata.get('fingerprint') != key:
            return False
        if CHECKSUM not in metadata:
            raise CheckpointError(f'{path} has no checksum. {ADVICE}')
    except CheckpointError as error:
        logger().warning(str(error))
        return False
    # Files of earlier versions hold one tensor per batch, under other names.
    return all(name.isdigit() for name in tensors)


def join_shares(folder: str, role: str, key: str, counts: Sequence[int]) -> list[Features]:
    """Features of all instances, in the order of the batches, from the files of all processes.

    All processes call this together, after each has written its share.

    Args:
        folder: Where the files are. If nodes do not share it, the files of other nodes are copied.
        role: Whose features they are.
        key: What they were computed from; files with another key are not read.
        counts: Instances of every batch; processes take batches in turn.

    Returns:
        The features, one entry per level.

    Raises:
        StorageError: A file cannot be read although its process has written it.
    """
    _, world_size = get_dist_info()
    if world_size == 1:
        return map_written([share_path(folder, role)], key)[0]
    shares = map_all(folder, role, key)
    numbers = torch.arange(len(counts)) % world_size
    part = numbers.repeat_interleave(torch.tensor(counts, dtype=torch.long))
    place = torch.empty_like(part)
    for number, share in enumerate(shares):
        mine = part == number
        place[mine] = torch.arange(int(mine.sum()))
        assert not share or len(share[0]) == int(mine.sum())
    levels = len(shares[0])  # the first process has a batch if any has
    return [JointFeatures([share[level] if share else shares[0][level][:0] for share in shares],
                          part, place) for level in range(levels)]


def map_all(folder: str, role: str, key: str) -> list[Share]:
    """Map the shares of all processes; copy those that this node does not have.

    Raises:
        StorageError: See :func:`join_shares`.
    """
    own, world_size = get_dist_info()
    paths = [share_path(folder, role, rank) for rank in range(world_size)]
    all_gather(None)  # all have written
    missing = set().union(*all_gather([rank for rank, path in enumerate(paths)
                                       if map_share(path, key) is None]))
    for rank in sorted(missing):
        sent = [map_share(paths[rank], key) if own == rank else None]
        dist.broadcast_object_list(sent, rank, group=cpu_group())
        first_of_node = int(os.environ.get('LOCAL_RANK', 0)) == 0
        if first_of_node and sent[0] is not None and map_share(paths[rank], key) is None:
            save_share(folder, role, key, sent[0], rank)
    if missing:
        all_gather(None)  # all have copied
    return map_written(paths, key)


def map_written(paths: Sequence[str], key: str) -> list[Share]:
    """Map the files of shares that have been written.

    Raises:
        StorageError: See :func:`join_shares`.
    """
    shares = [map_share(path, key) for path in paths]
    for path, share in zip(paths, shares):
        if share is None:
            raise StorageError(f'{path} cannot be read, although it was just written. Does '
                               f'something remove files there? Else name another --work-dir.')
    return shares


def map_share(path: str, key: str) -> Optional[Share]:
    """Map a share's file; None if it is not there, or of something else."""
    if not osp.exists(path):
        return None
    try:
        tensors, metadata = map_tensors(path, ADVICE)
    except CheckpointError:
        return None
    if metadata.get('fingerprint') != key:
        return None
    return [tensors[str(level)] for level in range(len(tensors))]


def remove_shares(folder: str, role: str) -> None:
    """Remove the files of a role; processes that have mapped them can still read them.

    All processes call this together.
    """
    all_gather(None)  # all have mapped them
    _, world_size = get_dist_info()
    for rank in range(world_size):
        with suppress(OSError):  # another process was first, or Windows keeps what is mapped
            os.unlink(share_path(folder, role, rank))
