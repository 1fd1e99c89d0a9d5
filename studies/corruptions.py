"""Corrupt an instance of an image by degrees: blur, motion, occlusion, low resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from kornia.augmentation import RandomErasing
from kornia.filters import gaussian_blur2d, motion_blur
from kornia.geometry.transform import resize
from torch import Tensor
from torch.nn.functional import pad

# What degree 1 stands for; what lies between is proportional.
MOST_SIGMA = 0.15  # standard deviation of the Gaussian, in side lengths of the instance
MOST_MOTION = 0.5  # length of the motion, in side lengths
MOST_ERASED = 0.8  # share of the box's area
MOST_SHRUNK = 0.875  # share of the side length that down-scaling takes away


def blur(window: Tensor, side: float, degree: float, seed: int) -> Tensor:
    """Gaussian blur with a standard deviation of up to 0.15 side lengths."""
    sigma = MOST_SIGMA * degree * side
    kernel = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(window[None], kernel, (sigma, sigma), border_type='replicate')[0]


def move(window: Tensor, side: float, degree: float, seed: int) -> Tensor:
    """Motion of up to half a side length, in a direction that the seed decides."""
    length = 2 * round(MOST_MOTION * degree * side / 2) + 1
    if length < 3:
        return window
    angle = 180 * torch.rand(1, generator=torch.Generator().manual_seed(seed))
    return motion_blur(window[None], length, angle, torch.zeros(1), border_type='replicate',
                       mode='bilinear')[0]


def occlude(window: Tensor, side: float, degree: float, seed: int) -> Tensor:
    """Erase a rectangle of the window's shape, at a place that the seed decides.

    A higher degree erases all that a lower one does, and more.
    """
    share, (height, width) = MOST_ERASED * degree, window.shape[-2:]
    erase = RandomErasing(scale=(share, share), ratio=(height / width, height / width), p=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return erase(window[None])[0]


def shrink(window: Tensor, side: float, degree: float, seed: int) -> Tensor:
    """Scale down, by up to eight, and up again: what a smaller or more distant instance shows."""
    size = window.shape[-2:]
    small = [max(1, round(length * (1 - MOST_SHRUNK * degree))) for length in size]
    # kornia before 0.9 cannot smooth a side of one pixel: two that are equal stand for it.
    more = 0, int(size[1] == 1), 0, int(size[0] == 1)
    window = pad(window[None], more, mode='replicate')
    return resize(resize(window, tuple(small), antialias=True), tuple(size))[0]


CORRUPTIONS: Mapping[str, Callable[[Tensor, float, float, int], Tensor]] = MappingProxyType({
    'Gaussian blur': blur, 'motion blur': move, 'occlusion': occlude, 'down-scaling': shrink})
# Blur mixes an instance with what is around it; the others know the box alone.
REACH = MappingProxyType({'Gaussian blur': 3 * MOST_SIGMA, 'motion blur': MOST_MOTION / 2})


def corrupt(image: Tensor, box: Tensor, kind: str, degree: float, seed: int = 0) -> Tensor:
    """Corrupt what lies in a box; every other pixel stays as it is.

    Strengths are relative to the instance's side length, the square root of its area, so that a
    degree means the same to small and large instances.

    Args:
        image: ``(C, H, W)``, float on the CPU. Occlusion fills with 0: the mean colour of a
            normalised image.
        box: ``(4,)`` as ``x1, y1, x2, y2`` in pixels.
        kind: A key of :data:`CORRUPTIONS`.
        degree: From 0, which changes nothing, to 1.
        seed: Decides the direction of motion and the place of occlusion, the same at all degrees.

    Returns:
        A new image of the same shape.

    Raises:
        ValueError: The kind is unknown, or the degree lies outside of 0 to 1.

    Example:
        >>> image = torch.ones(1, 8, 8)
        >>> corrupted = corrupt(image, torch.tensor([0.0, 0.0, 4.0, 4.0]), 'occlusion', 0.5)
        >>> int((corrupted == 0).sum())  # 0.5 of 0.8 of 16 pixels, rounded to whole ones
        9
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f'kind must be one of {sorted(CORRUPTIONS)}, got {kind!r}')
    if not 0 <= degree <= 1:
        raise ValueError(f'degree must be from 0 to 1, got {degree}')
    corrupted = image.clone()
    x1, y1, x2, y2 = pixels(box, image.shape[-2:])
    if degree == 0:
        return corrupted
    side = math.sqrt((x2 - x1) * (y2 - y1))
    margin = math.ceil(REACH.get(kind, 0) * side)
    left, top = max(0, x1 - margin), max(0, y1 - margin)
    window = image[:, top:y2 + margin, left:x2 + margin]
    window = CORRUPTIONS[kind](window, side, degree, seed)
    corrupted[:, y1:y2, x1:x2] = window[:, y1 - top:y2 - top, x1 - left:x2 - left]
    return corrupted


def pixels(box: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Whole pixels that a box touches, at least one, inside an image of ``(H, W)``.

    Example:
        >>> pixels(torch.tensor([-3.0, 2.5, 4.2, 99.0]), (10, 10))
        (0, 2, 5, 10)
    """
    x1, y1, x2, y2 = box.tolist()
    left, top = (min(max(0, math.floor(low)), end - 1) for low, end in zip((x1, y1), size[::-1]))
    right, bottom = (max(min(math.ceil(high), end), low + 1) for high, end, low in
                     zip((x2, y2), size[::-1], (left, top)))
    return left, top, right, bottom
