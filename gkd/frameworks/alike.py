"""What is the same in both MMDetections."""

from __future__ import annotations

import os.path as osp
from typing import Any

import mmdet
import numpy as np

from gkd.errors import ConfigError

# What begins the path of a config that the installed MMDetection ships.
MMDET_SCOPE = 'mmdet::'


def mmdet_configs() -> str:
    """Folder of the configs that the installed MMDetection ships."""
    package = osp.dirname(mmdet.__file__)
    shipped = osp.join(package, '.mim', 'configs')
    # A development install keeps them beside the package.
    return shipped if osp.isdir(shipped) else osp.join(osp.dirname(package), 'configs')


def require_told(meta: dict, dataset: Any) -> None:
    """Raise ConfigError if a test pipeline does not tell where boxes lie in what it makes.

    Args:
        meta: MMDetection's description of an image.
        dataset: The data set with the pipeline.
    """
    missing = ' and '.join(name for name in ('img_shape', 'scale_factor') if name not in meta)
    if missing:
        raise ConfigError(f'the test pipeline, through which prototypes of {dataset.ann_file} are '
                          f'seen, does not tell {missing} of an image, so it is not known where '
                          f'boxes lie in it: list {missing} in `meta_keys` of its last step.')


def placement(meta: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """Where the image lies in what a pipeline makes of it.

    CornerNet's and CenterNet's put it into the middle of a larger one. Others pad it at the bottom
    and at the right alone.

    Args:
        meta: MMDetection's description of the image.

    Returns:
        How far boxes are moved, ``(4,)`` in pixels, and the height and width within which the
        image ends.

    Example:
        >>> placement(dict(border=[10, 90, 5, 45]))  # its top, bottom, left and right
        (array([ 5., 10.,  5., 10.], dtype=float32), (90, 45))
    """
    top, bottom, left, right = meta['border'] if 'border' in meta else (
        0, meta['img_shape'][0], 0, meta['img_shape'][1])
    return np.array([left, top, left, top], np.float32), (int(bottom), int(right))


def source_of(dataset: Any) -> str:
    """Annotation file of a data set, for messages."""
    return dataset.ann_file


def description(dataset: Any) -> str:
    """All that the images of a data set depend on besides their files."""
    return repr(dataset.pipeline)
