"""What stands for Albumentations, which need not be installed."""

import random

import numpy as np


class OwnGenerators:
    """Albumentations' composition of version 2, with nothing but its random numbers."""

    def __init__(self, transforms, bbox_params=None):
        self.set_random_state(np.random.default_rng(), random.Random())

    def set_random_state(self, random_generator, py_random):
        self.generators = random_generator, py_random

    def __call__(self, image):
        array, python = self.generators
        return dict(image=image + array.random() + python.random())
