"""Patches of how the pipelines of either MMDetection draw random numbers."""

from __future__ import annotations

import functools
import random

import numpy as np


def let_albumentations_follow_the_seed(step: type, method: str) -> None:
    """Let Albumentations draw from generators that those of Python and numpy seed, for each image.

    Reason: from 1.4.21 on it has generators of its own, which start from the system's entropy:
    two trainings with one seed augment images differently, and so does a resumed one.
    For: mmdet 2.x and 3.x with albumentations of that version or later.

    Args:
        step: MMDetection's ``Albu``.
        method: Its method that augments an image.
    """
    call = getattr(step, method)

    @functools.wraps(call)
    def augment(self, results):
        if hasattr(self.aug, 'set_random_state'):
            # Both are shared by all of its transforms: with the same seed each, they would all
            # be applied to the same images.
            self.aug.set_random_state(np.random.default_rng(np.random.randint(2 ** 31)),
                                      random.Random(random.getrandbits(32)))
        return call(self, results)

    setattr(step, method, augment)
