"""A benchmark whose degradations are known: handwritten digits on photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from gkd.datasets.once import build_once
from gkd.datasets.scenes import Symbols, build_scenes, missing

RECIPE = 2  # count up when the files come out differently
IMAGES = dict(train=1600, val=200)
CLASSES = tuple('0123456789')
TRAIN_SCANS = 0.7  # share of the scans that trains; the rest validates
MIN_INK = 96  # of 255; fainter rows and columns around a scanned digit are cut off


def prepare_digit_scenes(root: str = 'data/digit_scenes', seed: int = 0) -> Path:
    """Make the digit-scenes detection data set, once, in COCO format.

    Handwritten digits (scikit-learn's 1797 scans of 8x8 pixels, from the UCI repository) are
    pasted onto regions of photographs: 1600 training and 200 validation images of 256x256 pixels,
    4 to 8 digits each, ten classes. What an annotation says of a digit and what the two splits
    do not share is described in :mod:`gkd.datasets.scenes`; ``scan`` is the number of a digit's
    scan. Training and validation share no scan either: each has a block of its own, since
    neighbours may be by the same hand.

    Args:
        root: Folder of the data set. A complete one is left as it is.
        seed: Seed of the scenes; all files depend on it alone.

    Returns:
        The folder of the data set.

    Raises:
        DataError: scikit-learn or scikit-image is missing, or ``root`` holds something else.
    """
    recipe = dict(data_set='digit_scenes', recipe=RECIPE, images=IMAGES, seed=seed)
    return build_once(root, recipe, lambda folder: _build(folder, seed))


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits.

    Returns:
        Ink (1797, 8, 8) uint8 from 0 to 255, and classes (1797,) int64.

    Raises:
        DataError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing(error) from error
    digits = load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def draw_digit(scan: np.ndarray, size: int) -> np.ndarray:
    """Draw a scan larger, with smooth and sharp edges.

    Args:
        scan: (8, 8) uint8 ink.
        size: Wanted height or width of the ink, whichever is longer, in pixels.

    Returns:
        Opacity (height, width) uint8 with a margin of one scanned pixel around the ink.

    Example:
        >>> scan = np.zeros((8, 8), np.uint8)
        >>> scan[:, 3] = 255
        >>> ink = draw_digit(scan, 40) >= 128
        >>> ink.shape, int(ink.any(axis=1).sum())
        ((50, 15), 40)
    """
    x, y, width, height = cv2.boundingRect((scan >= MIN_INK).astype(np.uint8))
    ink = np.pad(scan[y:y + height, x:x + width], 1)
    scale = size / (max(ink.shape) - 2)
    height, width = (round(side * scale) for side in ink.shape)
    ink = cv2.resize(ink, (width, height), interpolation=cv2.INTER_CUBIC)
    # Ink rises from none to full over one scanned pixel. Let it rise over one drawn pixel.
    return ((ink - 128.0) * scale + 128).clip(0, 255).astype(np.uint8)


def digit_symbols(scans: np.ndarray, labels: np.ndarray) -> Symbols:
    """Scanned digits as what is pasted onto scenes.

    Args:
        scans: (N, 8, 8) uint8 ink.
        labels: (N,) their classes.
    """
    border = round(TRAIN_SCANS * len(scans))
    return Symbols(
        'digit', CLASSES, labels, lambda generator, index, size: draw_digit(scans[index], size),
        dict(train=np.arange(border), val=np.arange(border, len(scans))), 'scan')


def _build(folder, seed):
    build_scenes(folder, digit_symbols(*load_scans()), IMAGES, seed)
