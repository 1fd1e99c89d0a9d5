"""A training's seed decides all that its pipelines draw."""

import numpy as np
from helpers.own_generators import OwnGenerators
from mmdet.datasets.transforms import Albu

from gkd.randomness import random_state, set_random_state


def test_albumentations_draws_by_the_seed(monkeypatch):
    monkeypatch.setattr('mmdet.datasets.transforms.transforms.Compose', OwnGenerators)
    drawn, before = [], random_state()
    for _ in range(2):
        set_random_state(before)
        step = Albu(transforms=[])
        drawn += [[step.transform(dict(img=np.zeros((1, 1))))['img'].item() for _ in range(3)]]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
