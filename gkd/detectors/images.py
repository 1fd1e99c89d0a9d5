"""The image format that a detector expects, and the conversion from another detector's format.

A pipeline (or, in MMDetection 3, a preprocessor) turns pixels into numbers: it chooses the order
of the channels, subtracts a mean and divides by a standard deviation. A detector that gets images
in another format than it was trained on detects almost nothing, without any error. An affine map
of the channels converts one format into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor

from gkd.errors import ConfigError

SAME = 1e-6  # relative: configs round the same numbers differently


@dataclass(frozen=True)
class ImageFormat:
    """What the numbers of an image mean to a detector.

    Attributes:
        mean: Subtracted from the channels, in their order.
        std: What they are divided by.
        rgb: Whether red comes first; else blue does.
        padding: What fills the space beside an image, in the numbers that the detector sees; None
            if images are never padded.
        colours: mmcv's ``color_type``: ``'color'``, ``'grayscale'``, ``'unchanged'``.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    rgb: bool = False
    padding: Optional[tuple[float, ...]] = None
    colours: str = 'color'

    def __str__(self) -> str:
        mean, std = (', '.join(f'{value:g}' for value in values)
                     for values in (self.mean, self.std))
        return f'{"RGB" if self.rgb else "BGR"}, mean {mean}, std {std}'

    @classmethod
    def of_pipeline(cls, pipeline: Sequence[dict]) -> Optional[ImageFormat]:
        """Read a pipeline of MMDetection 2.

        Args:
            pipeline: Its steps; what ``MultiScaleFlipAug`` holds is read as well.

        Returns:
            The format; None if the pipeline reads its images with a custom step, about which
            nothing is known.

        Example:
            >>> steps = [dict(type='LoadImageFromFile'), dict(type='Normalize', mean=[127.0] * 3,
            ...          std=[60.0] * 3, to_rgb=True), dict(type='Pad', size_divisor=32)]
            >>> print(ImageFormat.of_pipeline(steps))
            RGB, mean 127, 127, 127, std 60, 60, 60
        """
        found = None
        for step in steps_of(pipeline):
            kind = step['type']
            if kind == 'LoadImageFromFile':
                found = cls(rgb=step.get('channel_order', 'bgr') == 'rgb',
                            colours=step.get('color_type', 'color'))
            elif found is None:
                continue
            elif kind == 'Normalize':
                found = found.normalised(step['mean'], step['std'], step.get('to_rgb', True))
            elif kind == 'Pad':
                value = step.get('pad_val', 0)
                value = value.get('img', 0) if isinstance(value, dict) else value
                found = found.padded(value)
        return found

    @classmethod
    def of_preprocessor(cls, settings: dict) -> ImageFormat:
        """Read a ``data_preprocessor`` of MMDetection 3, which gets BGR pixels.

        Args:
            settings: Its config.

        Example:
            >>> print(ImageFormat.of_preprocessor(dict(mean=[103.53, 116.28, 123.675],
            ...       std=[1.0, 1.0, 1.0], bgr_to_rgb=False)))
            BGR, mean 103.53, 116.28, 123.675, std 1, 1, 1
        """
        found = cls(rgb=bool(settings.get('bgr_to_rgb')) != bool(settings.get('rgb_to_bgr')))
        mean, std = settings.get('mean'), settings.get('std')
        if mean is not None and std is not None:
            found = cls(channels(mean), channels(std), found.rgb)
        # It pads after normalising.
        return cls(found.mean, found.std, found.rgb, channels(settings.get('pad_value', 0)))

    def normalised(self, mean: Sequence[float], std: Sequence[float], swap: bool,
                   keep_padding: bool = False) -> ImageFormat:
        """The format after a step ``Normalize``, which swaps channels first."""
        mean, std = channels(mean), channels(std)
        padding = self.padding
        if padding is not None and not keep_padding:
            padding = padding[::-1] if swap else padding
            padding = tuple((p - m) / s for p, m, s in zip(padding, mean, std))
        return ImageFormat(mean, std, self.rgb != swap, padding, self.colours)

    def padded(self, value: Union[float, Sequence[float]]) -> ImageFormat:
        """The format after a step ``Pad``."""
        return ImageFormat(self.mean, self.std, self.rgb, channels(value), self.colours)


class ChannelMap:
    """Turns images of one format into another, on their device.

    Args:
        given: The format of the images.
        wanted: The format to be made of them.

    Attributes:
        is_identity: Whether both are the same.
        keeps_numbers: Whether both are the same except for the order of channels and the padding.

    Raises:
        ConfigError: The formats differ in ``colours``: the lost colours cannot be computed.

    Example:
        >>> caffe = ImageFormat((10.0, 20.0, 30.0), (1.0, 1.0, 1.0))
        >>> other = ImageFormat((30.0, 20.0, 10.0), (5.0, 5.0, 5.0), rgb=True)
        >>> red = torch.tensor([2.0, 0, 0]).reshape(1, 3, 1, 1)  # 10 above the mean
        >>> ChannelMap(other, caffe)(red, [(1, 1)]).flatten()
        tensor([ 0.,  0., 10.])
    """

    def __init__(self, given: ImageFormat, wanted: ImageFormat):
        if given.colours != wanted.colours or len(given.mean) != len(wanted.mean):
            raise ConfigError(
                f'images are read with color_type = {given.colours!r} here and with '
                f'{wanted.colours!r} there: one cannot be computed from the other.')
        self.given, self.wanted = given, wanted
        self.flip = given.rgb != wanted.rgb
        step = -1 if self.flip else 1
        mean, std = given.mean[::step], given.std[::step]
        self.scale = tuple(s / w for s, w in zip(std, wanted.std))
        self.shift = tuple((m - n) / w for m, n, w in zip(mean, wanted.mean, wanted.std))
        padding = (given.padding or channels(0))[::step]
        self.padding = wanted.padding or channels(0)
        # A batch of images is padded once more, with 0.
        self.refill = not all(
            close([p * a + b for p, a, b in zip(value, self.scale, self.shift)], self.padding)
            for value in (padding, channels(0)))
        self.keeps_numbers = (close(self.scale, (1.0,) * len(mean))
                              and close(self.shift, (0.0,) * len(mean)))
        self.is_identity = (not self.flip and self.keeps_numbers
                            and close(padding, self.padding))
        self.tensors: dict[tuple, tuple[Tensor, ...]] = {}

    def __repr__(self) -> str:
        return f'ChannelMap({self.given!r}, {self.wanted!r})'

    @torch.no_grad()
    def __call__(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Turn a batch of images.

        Args:
            images: ``(B, 3, H, W)`` in the given format; they are not changed.
            sizes: Height and width of every image without its padding, in pixels of ``images``.

        Returns:
            Images in the wanted format, of the same shape and dtype.
        """
        if self.is_identity:
            return images
        scale, shift, padding = self.on_device(images)
        turned = torch.addcmul(shift, images.flip(1) if self.flip else images, scale)
        if self.refill:
            for image, (height, width) in zip(turned, sizes):
                image[:, height:] = padding
                image[:, :, width:] = padding
        return turned

    def on_device(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scale, shift and padding ``(3, 1, 1)`` on the images' device, moved there once."""
        key = images.device, images.dtype
        if key not in self.tensors:
            self.tensors[key] = tuple(
                torch.tensor(values, device=images.device, dtype=images.dtype).reshape(-1, 1, 1)
                for values in (self.scale, self.shift, self.padding))
        return self.tensors[key]


def format_of(entry: Union[dict, Sequence]) -> Optional[ImageFormat]:
    """The format of a data set's images; of several, of the first one.

    Args:
        entry: Its config, possibly a list or a wrapper around others.
    """
    pipeline = pipeline_of(entry)
    return ImageFormat.of_pipeline(pipeline) if pipeline else None


def pipeline_of(entry: Union[dict, Sequence]) -> list[dict]:
    """All steps from file to tensor; wrappers that mix images add some."""
    if isinstance(entry, Sequence):
        return pipeline_of(entry[0]) if len(entry) else []
    if 'datasets' in entry:
        return pipeline_of(entry['datasets'])
    inner = pipeline_of(entry['dataset']) if 'dataset' in entry else []
    return [*inner, *(entry.get('pipeline') or ())]


def steps_of(pipeline: Sequence[dict]) -> Iterator[dict]:
    """Steps of a pipeline, and those inside ``MultiScaleFlipAug`` and the like."""
    for step in pipeline:
        yield step
        yield from steps_of(step.get('transforms') or () if step['type'] != 'Albu' else ())


def channels(value: Union[float, Sequence[float]]) -> tuple[float, ...]:
    """A value for each of three channels.

    Example:
        >>> channels(0), channels([1, 2, 3])
        ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
    """
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * 3


def close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether numbers are the same but for rounding."""
    return all(abs(a - b) <= SAME * max(1, abs(a), abs(b)) for a, b in zip(first, second))
