"""A trial before the first step: of loading training images, and what one says that fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gkd.commands.explain import lost_another_process, place_of, shown
from gkd.errors import ConfigError, GKDError
from gkd.randomness import random_state, set_random_state


def try_loading(dataset: Any, key: str) -> None:
    """Load two training images of every data set, so that none fails after hours of prototypes.

    Random states and what the pipeline keeps, such as images for a mosaic, stay as they are.

    Args:
        dataset: The training data, possibly several data sets in one.
        key: Their place in the config, for messages.

    Raises:
        ConfigError: They cannot be loaded; with the reason.
    """
    before = random_state()
    try:
        with trying(key, 'loading them', f'Look at {key} (its `pipeline`).', 'the training'):
            own = with_own_pipelines(dataset)
            for index in first_images(dataset):
                own[index]
    finally:
        set_random_state(before)


def first_images(dataset: Any, count: int = 2) -> list[int]:
    """Indices of the first images of a data set, of each one in a concatenation."""
    ends = getattr(dataset, 'cumulative_sizes', [len(dataset)])
    return [index for start, end in zip([0, *ends], ends)
            for index in range(start, min(start + count, end))]


def with_own_pipelines(dataset: Any) -> Any:
    """A copy of a data set whose pipelines, inside of wrappers too, are none of the original."""
    own = copy.copy(dataset)
    parts = vars(own)
    if 'pipeline' in parts:
        own.pipeline = copy.deepcopy(own.pipeline)
    if 'dataset' in parts:
        own.dataset = with_own_pipelines(own.dataset)
    if 'datasets' in parts:
        own.datasets = [with_own_pipelines(inner) for inner in own.datasets]
    return own


@contextmanager
def trying(key: str, part: str, advice: str, whole: str = 'the evaluation') -> Iterator[None]:
    """Turn what fails in a part of the trial into a ConfigError that names the part.

    That another process has ended is no fault of the config.

    Args:
        key: The place in the config that the part depends on.
        part: What is done with the two images.
        advice: What to look at, and how to do without the evaluation.
        whole: What would fail, too.

    Example:
        >>> with trying('model', 'detecting in them', 'Look at `model`.'):
        ...     1 / 0
        Traceback (most recent call last):
        gkd.errors.ConfigError: model: a trial with two images fails, so that the evaluation would,
        in detecting in them: ZeroDivisionError: division by zero
        It happened in <doctest ...>:2, <module>. Look at `model`.
    """
    try:
        yield
    except GKDError:
        raise
    except Exception as error:
        if lost_another_process(error):
            raise
        raise ConfigError(
            f'{key}: a trial with two images fails, so that {whole} would, in {part}: '
            f'{type(error).__name__}: {shown(error)}\nIt happened in {place_of(error)}. {advice}'
            .rstrip()) from error
