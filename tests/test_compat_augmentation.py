"""A training's seed decides all that its pipelines draw."""

import random

import numpy as np
from helpers.own_generators import OwnGenerators
from mmdet.datasets import pipelines

from gkd.randomness import random_state, set_random_state


def draws(step, count=3):
    return [step(dict(img=np.zeros((1, 1))))['img'].item() for _ in range(count)]


def test_albumentations_draws_by_the_seed(monkeypatch):
    monkeypatch.setattr('mmdet.datasets.pipelines.transforms.Compose', OwnGenerators)
    step = pipelines.Albu(transforms=[])
    before = random_state()
    first = draws(step)
    set_random_state(before)
    assert draws(pipelines.Albu(transforms=[])) == first
    assert len(set(first)) == 3 and draws(step) != first
    for set_seed in (random.seed, np.random.seed):  # both count
        set_random_state(before)
        set_seed(99)
        assert draws(step) != first


def test_an_albumentations_without_generators_of_its_own_is_left_alone(monkeypatch):
    monkeypatch.setattr('mmdet.datasets.pipelines.transforms.Compose',
                        lambda transforms, bbox_params: lambda image: dict(image=image))
    before = np.random.get_state()[1:3]
    assert draws(pipelines.Albu(transforms=[]), 1) == [0]
    np.testing.assert_equal(np.random.get_state()[1:3], before)
