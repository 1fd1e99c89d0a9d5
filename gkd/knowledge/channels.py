"""Levels that a method teaches, and layers that match channel counts where they differ."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Optional

from torch import nn

from gkd.errors import PairError

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


def taught_levels(pair: DetectorPair, levels: Optional[Sequence[int]], method: str,
                  default: Optional[int] = None) -> tuple[int, ...]:
    """Paired levels that a method teaches.

    Args:
        pair: Traits of teacher and student.
        levels: Indices of the levels as a config names them, 0 for the finest; None for the
            method's own choice.
        method: Its name, for messages.
        default: The method's own choice: this many levels from the finest on, or all if there are
            fewer; None for all.

    Raises:
        PairError: A level does not exist, or is named twice.

    Example:
        >>> from types import SimpleNamespace
        >>> pair = SimpleNamespace(num_levels=3, strides=(8, 16, 32))
        >>> taught_levels(pair, None, 'CWD', default=4), taught_levels(pair, [0, 2], 'CWD')
        ((0, 1, 2), (0, 2))
        >>> taught_levels(pair, [3], 'CWD')
        Traceback (most recent call last):
        gkd.errors.PairError: CWD.levels = [3]: must name some of the paired levels 0 to 2
        (strides 8 to 32), each once.
    """
    if levels is None:
        return tuple(range(min(default or pair.num_levels, pair.num_levels)))
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(
            range(pair.num_levels)):
        raise PairError(
            f'{method}.levels = {list(levels)}: must name some of the paired levels 0 to '
            f'{pair.num_levels - 1} (strides {pair.strides[0]} to {pair.strides[-1]}), each once.')
    return tuple(levels)


def channels_of(pair: DetectorPair, levels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Channels of the student's and of the teacher's maps on some of the paired levels."""
    return tuple([pair.channels(info)[level] for level in levels]
                 for info in (pair.student, pair.teacher))


def alike_levels(student: Sequence[Hashable], teacher: Sequence[Hashable]) -> list[range]:
    """Group neighbouring levels with equal numbers of channels, which are computed together.

    Args:
        student: Channels of the student's levels, or whole shapes where more must agree.
        teacher: The teacher's, likewise.

    Example:
        >>> alike_levels([8, 8, 8], [8, 16, 16])
        [range(0, 1), range(1, 3)]
    """
    groups = groupby(range(len(student)), key=lambda level: (student[level], teacher[level]))
    ranges = [[*levels] for _, levels in groups]
    return [range(levels[0], levels[-1] + 1) for levels in ranges]


def match_channels(student: Sequence[int], teacher: Sequence[int]) -> nn.ModuleList:
    """One layer per level that gives the student's map as many channels as the teacher's.

    The layer is a 1x1 convolution where the counts differ and the identity where they are equal.
    So a method that compares maps as they are does so wherever it can.

    Args:
        student: Channels of the student's levels.
        teacher: Channels of the teacher's, likewise.

    Returns:
        The layers, one per level; maps keep their size.

    Example:
        >>> match_channels([8, 8], [8, 16])
        ModuleList(
          (0): Identity()
          (1): Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    return nn.ModuleList(
        nn.Identity() if own == other else nn.Conv2d(own, other, kernel_size=1)
        for own, other in zip(student, teacher))
