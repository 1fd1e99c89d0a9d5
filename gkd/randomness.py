"""Random numbers of a training: states of the generators, and seeds of single images."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Dataset


def random_state() -> dict:
    """States of all random generators of this process, as tensors and numbers."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=(version, torch.tensor(words), gauss),
        numpy=(kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None)


def set_random_state(state: dict) -> None:
    """Put all random generators of this process into a state.

    Args:
        state: What :func:`random_state` returned.
    """
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def isolated_random_numbers() -> Iterator[None]:
    """Leave all random number generators of the CPU as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class SeededIndex(int):
    """Index of an image, with the seed of its augmentation."""

    seed: int

    @classmethod
    def of(cls, index: int, seed: int) -> SeededIndex:
        """Put both together."""
        seeded = cls(index)
        seeded.seed = seed
        return seeded


class SeededItems:
    """Loads a batch of a data set, each image with random numbers of its own.

    torch's loader calls a data set's ``__getitems__`` where there is one.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, indices: list[SeededIndex]) -> list:
        items = []
        for index in indices:
            random.seed(index.seed)
            np.random.seed(index.seed)
            torch.manual_seed(index.seed)
            items.append(self.dataset[int(index)])
        return items
