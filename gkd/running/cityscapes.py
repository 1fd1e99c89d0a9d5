"""Whether masks can be written, and measured, as Cityscapes does it."""

from __future__ import annotations

import importlib
import os.path as osp
from glob import glob

import numpy as np
from mmdet.datasets import CityscapesDataset
from mmdet.models.detectors import BaseDetector

from gkd.errors import ConfigError

OWN_METRIC = 'cityscapes'
LABELS = 'cityscapesscripts.helpers.labels'
METRIC = 'cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling'


def check_written(detector: BaseDetector, key: str) -> None:
    """Raise ConfigError if what a detector finds cannot be written as Cityscapes' results.

    Args:
        detector: The detector.
        key: Where they were asked for, for messages.
    """
    if not detector.with_mask:
        raise ConfigError(f'{key}: Cityscapes\' own results are masks, and '
                          f'{type(detector).__name__} detects none. Ask for boxes in COCO\'s '
                          f'format: `bbox` as the metric; for --format-only, --eval-options '
                          f'jsonfile_prefix=PREFIX')
    check_package(LABELS, key)


def check_measured(detector: BaseDetector, dataset: CityscapesDataset, key: str) -> None:
    """Raise ConfigError if Cityscapes' own metric cannot be computed.

    It is not tried on two images, since it wants results of all.

    Args:
        detector: The detector.
        dataset: The data set that would be evaluated.
        key: Where the metric was asked for, for messages.
    """
    check_written(detector, key)
    check_package(METRIC, key)
    if not hasattr(np, 'in1d'):
        raise ConfigError(f'{key}: Cityscapes\' package computes its metric with functions that '
                          f'numpy has had up to version 2.3; {np.__version__} is installed. '
                          f'Install another: pip install "numpy<2.4", or leave the metric out: '
                          f'`bbox` and `segm` need only the annotations.')
    wanted = osp.join(dataset.img_prefix.replace('leftImg8bit', 'gtFine'),
                      '*', '*_gtFine_instanceIds.png')
    if not glob(wanted):
        raise ConfigError(f'{key}: the metric compares with the images {wanted}, and '
                          f'there are none. Put gtFine beside leftImg8bit, or leave the metric '
                          f'out: `bbox` and `segm` need only the annotations.')


def check_package(name: str, key: str) -> None:
    """Raise ConfigError if a module of Cityscapes' package cannot be imported."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'{key}: Cityscapes\' own results need its package: {error}. '
                          f'Install it: pip install cityscapesscripts') from None
