"""Match channel counts, only where they differ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def match_channels(student: Sequence[int], teacher: Sequence[int]) -> nn.ModuleList:
    """One layer a level that gives the student's map as many channels as the teacher's.

    A 1x1 convolution where the counts differ, nothing where they are equal: a method that compares
    maps as they are keeps doing so wherever it can.

    Args:
        student: Channels of the student's levels.
        teacher: Channels of the teacher's, likewise.

    Returns:
        The layers, one a level; maps keep their size.

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
