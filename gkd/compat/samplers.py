"""A patch of a sampler of either MMDetection."""

from __future__ import annotations

import numpy as np


def draw_from_positives_in_order(sampler: type) -> None:
    """Let Libra R-CNN's sampler choose the same positives by the same random numbers.

    Reason: it fills its positives up from a Python set of tensors, which are in the order of their
    places in memory. So two trainings with one seed differed, and a resumed one from one that ran
    through.
    For: mmdet 2.x and 3.x, up to 3.3.

    Args:
        sampler: ``InstanceBalancedPosSampler`` of the installed MMDetection.
    """
    draw = sampler.random_choice

    def draw_in_order(self, gallery, num):
        # Only what comes from the set is an array.
        return draw(self, np.sort(gallery) if isinstance(gallery, np.ndarray) else gallery, num)

    sampler.random_choice = draw_in_order
