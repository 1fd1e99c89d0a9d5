"""Detectors and data of a config of MMDetection 2."""

from __future__ import annotations

import os.path as osp
from typing import Any

import torch
from mmcv import Config, ConfigDict
from torch import Tensor

from gkd.frameworks import BaseDetector, Dataset
from gkd.progress import silence
from gkd.report.detections import best_first
from gkd.running.config import build_model, load_config
from gkd.running.data import build_checked_dataset, leaf_datasets
from gkd.running.data import prototype_datasets as prototype_configs
from gkd.running.export import load_detector
from gkd.running.test import test

__all__ = ['build_model', 'detect', 'load_config', 'load_detector', 'prototype_datasets',
           'save_detections', 'training_losses', 'validation_config', 'validation_datasets']


def prototype_datasets(config: Config) -> list[Dataset]:
    """The training data, as tests see them."""
    return [leaf for number, entry in enumerate(prototype_configs(config))
            for leaf in leaf_datasets(build_checked_dataset(
                entry, f'data.train[{number}]', dict(test_mode=True)))]


def validation_config(config: Config) -> ConfigDict:
    """The config of the validation data."""
    return config.data.val


def validation_datasets(config: Config) -> list[Dataset]:
    """The validation data."""
    return leaf_datasets(build_checked_dataset(validation_config(config), 'data.val',
                                               dict(test_mode=True)))


@torch.no_grad()
def detect(model: BaseDetector, dataset: Dataset, index: int) -> Tensor:
    """Detections of one image over all classes, best first: ``(n, 6)`` of box, score, label."""
    views = dataset.prepare_test_img(index)
    image, meta = views['img'][0], views['img_metas'][0].data
    return best_first(model.forward_test([image[None]], [[meta]], rescale=True)[0])


def save_detections(config: Config, checkpoint: str, folder: str) -> str:
    """Run a detector on all validation images.

    Args:
        config: Describes the detector and its data.
        checkpoint: Its weights.
        folder: Where to write.

    Returns:
        The file of COCO results.
    """
    config.data.test = config.data.val
    if 'val_dataloader' in config.data:
        config.data.test_dataloader = config.data.val_dataloader
    prefix = osp.join(folder, 'results')
    with silence():  # it would name the file, which the caller moves
        test(config, checkpoint, format_only=True, eval_options=dict(jsonfile_prefix=prefix))
    return f'{prefix}.bbox.json'


def training_losses(model: BaseDetector, batch: dict[str, Any], epoch: int) -> dict[str, float]:
    """Losses of a training step by name, and their sum ``loss``."""
    if hasattr(model, 'set_epoch'):  # TOOD is told by a hook of the runner
        model.set_epoch(epoch)
    return dict(model.train_step(batch, None)['log_vars'])
