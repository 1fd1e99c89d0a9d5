"""How large the images get that a config of MMDetection 3 trains on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Optional, Union

from mmengine.config import Config

from gkd.engine.config import detector_config
from gkd.errors import ConfigError

Size = tuple[float, float]  # longer and shorter side in pixels


def image_size(config: Config) -> tuple[int, int]:
    """Width and height of the largest images that a config scales to, padded.

    The steps of the pipeline, the preprocessor's padding and what it does to whole batches are
    followed in their order.

    Raises:
        ConfigError: No step of the config names a size.
    """
    preprocessor = detector_config(config).get('data_preprocessor') or {}
    batches = [dict(type='Pad', size_divisor=preprocessor.get('pad_size_divisor')),
               *(preprocessor.get('batch_augments') or ())]
    tested = config.get('test_dataloader') or config.get('val_dataloader')
    for loader in (config.train_dataloader, tested):
        size = largest(size_after(pipeline, None)
                       for pipeline in pipelines(loader and loader.dataset))
        if size:
            return tuple(map(ceil, size_after(batches, size)))
    raise ConfigError('neither train_dataloader nor test_dataloader has a pipeline that scales '
                      'images to a size; give it: --size WIDTH HEIGHT')


def pipelines(entry: Optional[dict]) -> Iterator[Sequence[dict]]:
    """The outermost pipelines of a data set with wrappers: those that images leave it by."""
    if not entry:
        return
    if 'pipeline' in entry:
        yield entry['pipeline']
    elif 'datasets' in entry:
        for inner in entry['datasets']:
            yield from pipelines(inner)
    else:
        yield from pipelines(entry.get('dataset'))


def size_after(steps: Sequence[dict], size: Optional[Size]) -> Optional[Size]:
    """Size of the largest images after steps of a pipeline; None if no step names one.

    Args:
        steps: Configs of the steps.
        size: Before them, if it is known.

    Example:
        >>> size_after([dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0)),
        ...             dict(type='RandomCrop', crop_size=(640, 512))], None)
        (640, 512)
    """
    for step in steps:
        inner = step.get('transforms')
        if inner:
            branches = inner if isinstance(inner[0], (list, tuple)) else [inner]
            size = largest(size_after(branch, size) for branch in branches)
        else:
            size = padded(step, cropped(step, scaled(step, size)))
    return size


def scaled(step: dict, size: Optional[Size]) -> Optional[Size]:
    """Size after a step, if it scales."""
    if size and step.get('random_size_range'):  # a whole batch, its proportions kept
        most = max(step['random_size_range'])
        return most * size[0] / size[1], most
    scales = step.get('scale') or step.get('scales')
    if not scales:
        return size
    several = isinstance(scales, Sequence) and isinstance(scales[0], Sequence)
    ratio = max(step.get('ratio_range') or (1,))
    longer, shorter = largest(map(as_size, scales if several else [scales]))
    return longer * ratio, shorter * ratio


def cropped(step: dict, size: Optional[Size]) -> Optional[Size]:
    """Size after a step, if it crops."""
    crop = step.get('crop_size')
    if not crop or step.get('crop_type', 'absolute').startswith('relative'):
        return size
    crop = as_size(crop)
    return tuple(map(min, size or crop, crop))


def padded(step: dict, size: Optional[Size]) -> Optional[Size]:
    """Size after a step, if it pads."""
    if not size:
        return size
    if step.get('pad_to_square'):
        size = max(size), max(size)
    if step.get('size'):
        size = largest([size, as_size(step['size'])])
    divisor = step.get('size_divisor') or 1
    return tuple(ceil(side / divisor) * divisor for side in size)


def as_size(value: Union[int, Sequence[int]]) -> Size:
    """Longer and shorter side of what a config gives: both sides, or one for a square."""
    return (value, value) if isinstance(value, (int, float)) else (max(value), min(value))


def largest(sizes: Iterable[Optional[Size]]) -> Optional[Size]:
    """The longest of the longer and the longest of the shorter sides; None without a size."""
    known = [size for size in sizes if size]
    return tuple(map(max, zip(*known))) if known else None
