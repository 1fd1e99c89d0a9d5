"""Patches of how the pipelines of either MMDetection read images."""

from __future__ import annotations

import errno
import functools
import os.path as osp
from typing import Any, Callable
from urllib.error import URLError

from gkd.errors import DataError, RunError
from gkd.frameworks import logger
from gkd.repository import tool

_warned = False


def name_unreadable_images() -> None:
    """Name the file of an image that cannot be read, and one whose size is not the listed one.

    Reason: OpenCV returns None for a file that is no image, so that mmdet ends in "'NoneType'
    object has no attribute 'shape'". Nothing checks the size of an image, although the boxes lie
    elsewhere if the camera has turned the image.
    For: mmdet 2.x.
    """
    from mmdet.datasets.pipelines.loading import LoadImageFromFile, LoadMultiChannelImageFromFiles

    def path_of(results: dict) -> str:
        name = results['img_info'].get('filename')
        names = name if isinstance(name, list) else [name]
        return ', '.join(osp.join(results.get('img_prefix') or '', str(name)) for name in names)

    for loader in (LoadImageFromFile, LoadMultiChannelImageFromFiles):
        loader.__call__ = _naming(loader.__call__, path_of, lambda results: results['img_info'])


def name_unreadable_images_with_mmdet3() -> None:
    """The same where MMDetection 3 is installed.

    Reason: mmcv 2 ends in an AssertionError, which reads as a defect.
    For: mmcv 2.x and mmdet 3.x.
    """
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import LoadMultiChannelImageFromFiles

    def path_of(results: dict) -> str:
        name = results['img_path']
        return ', '.join(map(str, name)) if isinstance(name, list) else str(name)

    for loader in (LoadImageFromFile, LoadMultiChannelImageFromFiles):
        loader.transform = _naming(loader.transform, path_of, lambda results: results)


def _naming(call: Callable, path_of: Callable[[dict], str],
            listed_of: Callable[[dict], dict]) -> Callable:
    """A method that loads an image, with errors and a warning that name the file.

    Args:
        call: The method.
        path_of: The file of an image, or its files.
        listed_of: Where width and height are, as the annotations list them.
    """
    @functools.wraps(call)
    def load(self: Any, results: dict) -> Any:
        try:
            loaded = call(self, results)
        except Exception as error:
            if _is_of_storage(error):
                raise RunError(f'{path_of(results)}: the image file cannot be read ({error}). See '
                               f'to the disk or the network that it lies on.') from error
            raise DataError(f'{path_of(results)}: {_reason(error)}. `python '
                            f'{tool("datasets.py")} check ANNOTATIONS --images FOLDER` opens all '
                            f'images.') from error
        if loaded is not None:
            _compare_size(loaded['img_shape'], listed_of(loaded), path_of(loaded))
        return loaded

    return load


def _is_of_storage(error: Exception) -> bool:
    # An OSError without a number is Pillow's, for what is no image.
    return isinstance(error, URLError) or (
        isinstance(error, OSError) and error.errno not in (None, errno.ENOENT))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'no such image file'
    of_address = isinstance(error, ValueError) and 'url' in str(error)  # Python's own, of HTTP
    if not of_address and isinstance(error, (AssertionError, AttributeError, OSError, ValueError)
                                     ) or type(error).__name__ == 'error':  # OpenCV's
        return 'the image file is empty, damaged, or of a format that is not known'
    return f'the image cannot be loaded ({type(error).__name__}: {error})'


def _compare_size(shape: tuple[int, ...], info: dict, path: str) -> None:
    global _warned
    listed = info.get('width'), info.get('height')
    height, width = shape[:2]
    if _warned or None in listed or listed == (width, height):
        return
    _warned = True
    logger().warning(
        f'{path} is {width} x {height} pixels, the annotations say {listed[0]} x {listed[1]}: its '
        f'boxes may lie elsewhere (a camera may have rotated the image). `python '
        f'{tool("datasets.py")} check ANNOTATIONS --images FOLDER` lists all such images.')
