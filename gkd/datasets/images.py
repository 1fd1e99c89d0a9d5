"""Image files: read with their name in every error, and checked all at once."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
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


class PictureFiles:
    """Files to draw images into: inside of a folder, and each image into one of its own.

    The name of an image may be an absolute path or begin with ``..``, so that its picture would
    replace the image itself. Those of several data sets may be alike.

    Args:
        folder: Where pictures go.

    Example:
        >>> files = PictureFiles('out')
        >>> [files(f'out/{name}') for name in ('a/1.jpg', 'a/1.jpg', '../b/1.jpg', 'photo_1')]
        ['out/a/1.jpg', 'out/a/1_2.jpg', 'out/b/1.jpg', 'out/photo_1.png']
        >>> files('/data/1.jpg')
        'out/data/1.jpg'
    """

    def __init__(self, folder: str):
        self.folder = osp.join(folder, '')
        self.taken: set[str] = set()

    def __call__(self, path: str) -> str:
        """The file for an image, with ``.png`` if no format is written by its name.

        Args:
            path: The folder joined with the name of the image.
        """
        parts = Path(path.removeprefix(self.folder)).parts
        inside = [part for part in parts if part not in (osp.sep, osp.pardir)]
        file = osp.join(self.folder, *inside)
        stem, ending = osp.splitext(file) if cv2.haveImageWriter(file) else (file, '.png')
        free = chain([stem + ending], (f'{stem}_{number}{ending}' for number in count(2)))
        file = next(file for file in free if file not in self.taken)
        self.taken.add(file)
        return file


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
