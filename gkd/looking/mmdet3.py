"""Detectors and data of a config of MMDetection 3."""

from __future__ import annotations

import os.path as osp
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from torch import Tensor

from gkd.engine.config import build_model, load_config
from gkd.engine.data import build_checked_dataset
from gkd.engine.export import load_detector
from gkd.engine.runner import Runner
from gkd.errors import ConfigError
from gkd.frameworks import BaseDetector, Dataset
from gkd.frameworks.mmdet3 import leaf_configs, prototype_configs

__all__ = ['build_model', 'detect', 'load_config', 'load_detector', 'prototype_datasets',
           'save_detections', 'training_losses', 'validation_config', 'validation_datasets']


def prototype_datasets(config: Config) -> list[Dataset]:
    """The training data, as tests see them.

    Raises:
        GKDError: A setting is wrong, or files are missing or broken.
    """
    places = leaf_configs(config.train_dataloader.dataset, 'train_dataloader.dataset')
    return checked_datasets(dict(zip(places, prototype_configs(config))))


def checked_datasets(entries: dict[str, ConfigDict]) -> list[Dataset]:
    """Build data sets, and check them as a training does.

    Args:
        entries: Their configs by their places, without wrappers.

    Raises:
        GKDError: A setting is wrong, or files are missing or broken.
    """
    with DefaultScope.overwrite_default_scope('mmdet'):
        return [build_checked_dataset(entry, place) for place, entry in entries.items()]


def validation_config(config: Config) -> ConfigDict:
    """The config of the validation data.

    Raises:
        ConfigError: There are none.
    """
    if not config.get('val_dataloader'):
        raise ConfigError(f'{config.filename} has no `val_dataloader`.')
    return config.val_dataloader.dataset


def validation_datasets(config: Config) -> list[Dataset]:
    """The validation data.

    Raises:
        GKDError: There are none, a setting is wrong, or files are missing or broken.
    """
    return checked_datasets(leaf_configs(validation_config(config), 'val_dataloader.dataset'))


@torch.no_grad()
def detect(model: BaseDetector, dataset: Dataset, index: int) -> Tensor:
    """Detections of one image over all classes, best first: ``(n, 6)`` of box, score, label."""
    data = {name: [part] for name, part in dataset.prepare_data(index).items()}
    found = model.test_step(data)[0].pred_instances
    boxes = torch.cat([found.bboxes, found.scores[:, None], found.labels[:, None]], dim=1)
    return boxes[found.scores.argsort(descending=True)]


def save_detections(config: Config, checkpoint: str, folder: str) -> str:
    """Run a detector on all validation images.

    Args:
        config: Describes the detector and its data, which are in COCO's format.
        checkpoint: Its weights.
        folder: Where to write.

    Returns:
        The file of COCO results.
    """
    data = validation_config(config)
    prefix = osp.join(folder, 'results')
    config.update(
        work_dir=folder, log_level='WARNING', launcher='none', resume=False, load_from=None,
        custom_hooks=[],
        test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
        test_evaluator=dict(type='CocoMetric', format_only=True, outfile_prefix=prefix,
                            ann_file=osp.join(data.get('data_root') or '', data.ann_file)))
    runner = Runner.with_checked_data(config, 'test')
    runner.load_detector(checkpoint)
    runner.test()
    return f'{prefix}.bbox.json'


def training_losses(model: BaseDetector, batch: dict[str, Any], epoch: int) -> dict[str, float]:
    """Losses of a training step by name, and their sum ``loss``."""
    # TOOD's head asks for it where a runner would have told it.
    MessageHub.get_current_instance().update_info('epoch', epoch)
    _, losses = model.parse_losses(model(**batch, mode='loss'))
    return {name: value.item() for name, value in losses.items()}
