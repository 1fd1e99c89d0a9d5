"""Image files: read with their name in every error, and checked all at once."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

import cv2
import mmcv
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gkd.errors import DataError
from gkd.progress import progress

THREADS = 8  # decoding leaves Python's lock


def read_image(path: str) -> np.ndarray:
    """An image file as RGB ``(height, width, 3)`` uint8, turned as its camera says.

    Raises:
        DataError: There is no such file, or it is no image; with its path.
    """
    pixels = None
    if osp.isfile(path):
        with open(path, 'rb') as file:
            content = file.read()
        if content:
            pixels = mmcv.imfrombytes(content)
    if pixels is None:
        raise DataError(f'{path}: {reason(path)}.')
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def picture_file(path: str) -> str:
    """The file to draw an image into: its own name, with ``.png`` if no format is written by it.

    Example:
        >>> picture_file('a/1.jpg'), picture_file('a/photo_1')
        ('a/1.jpg', 'a/photo_1.png')
    """
    return path if cv2.haveImageWriter(path) else f'{path}.png'


def reason(path: str) -> str:
    """Why a file cannot be read as an image."""
    if not osp.isfile(path):
        return 'no such image file'
    if osp.getsize(path) == 0:
        return 'the image file is empty'
    return 'no image, damaged, or of a format that is not known'


def fault_of(path: str, width: float, height: float) -> Optional[str]:
    """What is wrong with an image file; None if nothing is.

    Args:
        path: The file.
        width: In pixels, as the annotations have it.
        height: Likewise.
    """
    try:
        with Image.open(path) as image:
            found = ImageOps.exif_transpose(image).size  # decodes all of it
    except UnidentifiedImageError:  # OpenCV reads formats that Pillow does not know
        try:
            found = read_image(path).shape[1::-1]
        except DataError:
            return f'{path}: {reason(path)}'
    except FileNotFoundError:
        return f'{path}: {reason(path)}'
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f'{path}: {error}'
    if found != (width, height):
        return (f'{path} is {found[0]} x {found[1]} pixels, the annotations say {width} x '
                f'{height}')
    return None


def image_faults(files: Sequence[tuple[str, float, float]]) -> list[str]:
    """Open all images of a data set; what is wrong with which, in words.

    Args:
        files: Path, width and height of every image.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        found = progress(threads.map(lambda file: fault_of(*file), files), 'opening images',
                         len(files), 'image')
        return [fault for fault in found if fault]
