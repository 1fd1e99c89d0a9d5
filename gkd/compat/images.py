"""Mends of how mmdet's pipelines read images."""

from __future__ import annotations

import errno
import functools
import os.path as osp
from urllib.error import URLError

from mmcv.utils import get_logger
from mmdet.datasets.pipelines.loading import LoadImageFromFile, LoadMultiChannelImageFromFiles

from gkd.errors import DataError, RunError
from gkd.repository import tool

_warned = False


def name_unreadable_images() -> None:
    """Name the file of an image that cannot be read, and one whose size is not the listed one.

    Reason: OpenCV returns None for a file that is no image, so that mmdet ends in "'NoneType'
    object has no attribute 'shape'". Nothing checks the size of an image, although the boxes lie
    elsewhere if the camera has turned the image.
    For: mmdet 2.x.
    """
    for loader in (LoadImageFromFile, LoadMultiChannelImageFromFiles):
        loader.__call__ = _naming(loader.__call__)


def _naming(call):

    @functools.wraps(call)
    def load(self, results):
        try:
            loaded = call(self, results)
        except Exception as error:
            if _is_of_storage(error):
                raise RunError(f'{_path(results)}: the image file cannot be read ({error}). See '
                               f'to the disk or the network that it lies on.') from error
            raise DataError(f'{_path(results)}: {_reason(error)}. `python '
                            f'{tool("datasets.py")} check ANNOTATIONS --images FOLDER` opens all '
                            f'images.') from error
        _compare_size(loaded)
        return loaded

    return load


def _path(results: dict) -> str:
    name = results['img_info'].get('filename')
    names = name if isinstance(name, list) else [name]
    return ', '.join(osp.join(results.get('img_prefix') or '', str(name)) for name in names)


def _is_of_storage(error: Exception) -> bool:
    # An OSError without a number is Pillow's, for what is no image.
    return isinstance(error, URLError) or (
        isinstance(error, OSError) and error.errno not in (None, errno.ENOENT))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'no such image file'
    if isinstance(error, (AttributeError, OSError, ValueError)) or (
            type(error).__name__ == 'error'):  # OpenCV's
        return 'the image file is empty, damaged, or of a format that is not known'
    return f'the image cannot be loaded ({type(error).__name__}: {error})'


def _compare_size(loaded: dict) -> None:
    global _warned
    info = loaded['img_info']
    listed = info.get('width'), info.get('height')
    height, width = loaded['img_shape'][:2]
    if _warned or None in listed or listed == (width, height):
        return
    _warned = True
    get_logger('mmdet').warning(
        f'{_path(loaded)} is {width} x {height} pixels, the annotations say {listed[0]} x '
        f'{listed[1]}: its boxes may lie elsewhere (a camera may have turned the image). `python '
        f'{tool("datasets.py")} check ANNOTATIONS --images FOLDER` tells of all such images.')
