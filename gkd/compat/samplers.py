"""Mends of the samplers of Libra R-CNN, the same for either MMDetection."""

from __future__ import annotations

import functools

import numpy as np


def draw_from_positives_in_order(sampler: type) -> None:
    """Let the same random numbers choose the same positives.

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


def sample_negatives_of_all_images_alike(sampler: type) -> None:
    """Let the first image be sampled as all later ones.

    Reason: a ``floor_thr`` below 0, the default, becomes 0 when the sampler is first used, and
    with 0 it chooses others. So the first image of a process was sampled in a way of its own, also
    where a training went on, which then was no longer the same.
    For: mmdet 2.x and 3.x, up to 3.3.

    Args:
        sampler: ``IoUBalancedNegSampler`` of the installed MMDetection.
    """
    initialise = sampler.__init__

    @functools.wraps(initialise)
    def initialise_as_used(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        self.floor_thr = max(self.floor_thr, 0)

    sampler.__init__ = initialise_as_used
