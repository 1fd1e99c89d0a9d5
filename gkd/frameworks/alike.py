"""What is the same in both MMDetections."""

from __future__ import annotations

import os.path as osp
from typing import Any

import mmdet

# What begins the path of a config that the installed MMDetection ships.
MMDET_SCOPE = 'mmdet::'


def mmdet_configs() -> str:
    """Folder of the configs that the installed MMDetection ships."""
    package = osp.dirname(mmdet.__file__)
    shipped = osp.join(package, '.mim', 'configs')
    # A development install keeps them beside the package.
    return shipped if osp.isdir(shipped) else osp.join(osp.dirname(package), 'configs')


def source_of(dataset: Any) -> str:
    """Annotation file of a data set, for messages."""
    return dataset.ann_file


def description(dataset: Any) -> str:
    """All that the images of a data set depend on besides their files."""
    return repr(dataset.pipeline)
