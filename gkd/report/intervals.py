"""Confidence intervals of mean gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

LEVEL = 0.95
RESAMPLES = 100_000


@dataclass(frozen=True)
class Interval:
    """Mean of several differences, and its 95 % confidence interval.

    Attributes:
        mean: The mean.
        count: Number of differences.
        low: Lower end of the interval; None for a single difference, which has no interval.
        high: Upper end, likewise.
    """

    mean: float
    count: int
    low: Optional[float] = None
    high: Optional[float] = None

    def __str__(self) -> str:
        if self.low is None:
            return f'{self.mean:+.1f}'
        return f'{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]'


def confidence_interval(groups: Sequence[Sequence[float]]) -> Interval:
    """Mean over all differences with its 95 % interval.

    With one group, it is Student's t interval. With several groups, whose members share something
    (a teacher, a validation strip), it is a hierarchical bootstrap: groups are drawn with
    replacement, then members of each. If each group has a single member, it is Student's t again.

    Args:
        groups: The differences, one sequence per group; at least one group, and none empty.

    Example:
        >>> print(confidence_interval([[1.0, 2.0, 3.0]]))
        +2.0 [-0.5, +4.5]
        >>> print(confidence_interval([[1.0]]))
        +1.0
        >>> print(confidence_interval([[1.0, 1.0], [3.0, 3.0]]))
        +2.0 [+1.0, +3.0]
    """
    values = np.concatenate([np.asarray(group, float) for group in groups])
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, count)
    if len(groups) == 1 or count == len(groups):
        from scipy import stats  # not needed where nothing is reported

        spread = stats.t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / count ** 0.5
        return Interval(mean, count, mean - spread, mean + spread)
    generator = np.random.default_rng(0)
    sizes = np.array([len(group) for group in groups])
    drawn = generator.integers(len(groups), size=(RESAMPLES, len(groups)))
    # Sums of members, drawn anew for each place that each group may be drawn for.
    sums = np.stack([
        np.asarray(group, float)[generator.integers(size, size=(*drawn.shape, size))].sum(-1)
        for group, size in zip(groups, sizes)])
    means = np.take_along_axis(sums, drawn[None], 0)[0].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, count, float(low), float(high))
