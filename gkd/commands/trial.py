"""A trial before the first step: of training images and a step, and what one says that fails."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gkd.commands.explain import lost_another_process, place_of, shown
from gkd.commands.machine import advice_on
from gkd.errors import ConfigError, GKDError
from gkd.frameworks import PACKING, SAMPLE_PARTS
from gkd.progress import silence, without_log
from gkd.randomness import random_state, set_random_state


def try_training(dataset: Any, key: str, step: Callable[[list], Any], batch_size: int) -> None:
    """Load two training images of every data set, and take a step with them.

    So nothing of the kind fails after hours of prototypes. Random states and what the pipeline
    keeps, such as images for a mosaic, stay as they are.

    Args:
        dataset: The training data, possibly several data sets in one.
        key: Their place in the config, for messages.
        step: Computes the losses of some of them, and changes nothing.
        batch_size: Images that it gets at most.

    Raises:
        ConfigError: They cannot be loaded or trained on; with the reason.
    """
    before = random_state()
    try:
        with trying(key, 'loading them', f'Look at {key} (its `pipeline`).', 'the training'):
            own = with_own_pipelines(dataset)
            samples = [own[index] for index in first_images(dataset)]
        for sample in samples:
            check_packed(sample, key)
        with silence(), without_log(), trying(
                'model', f'a training step with those of {key}', f'Look at `model`, and at what '
                f'the pipeline of {key} hands to it: {PACKING}.', 'the training'):
            for start in range(0, len(samples), batch_size):
                step(samples[start:start + batch_size])
    finally:
        set_random_state(before)


def check_packed(sample: Any, key: str) -> None:
    """Raise ConfigError if a pipeline does not end in what every detector is given.

    Args:
        sample: What it makes of an image.
        key: Place of the data set in the config, for messages.
    """
    missing = [part for part in SAMPLE_PARTS if part not in sample]
    if missing:
        raise ConfigError(f'{key}.pipeline: what it makes of an image has no '
                          f'{" and no ".join(missing)}. Take the steps of the detector\'s own '
                          f'config, to the last: {PACKING}.')


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
            f'{type(error).__name__}: {shown(error)}\nIt happened in {place_of(error)}. '
            f'{advice_on(error) or advice}'.rstrip()) from error
