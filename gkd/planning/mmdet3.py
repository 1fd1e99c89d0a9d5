"""What a config of MMDetection 3 says of a training."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.optim import Optimizer

from gkd.engine.checks import check_optimizer
from gkd.engine.config import build_model, load_config, untrained_model
from gkd.engine.distill import describe_images, distillation_config
from gkd.engine.image_size import image_size
from gkd.errors import naming
from gkd.frameworks import Dataset, build_dataset
from gkd.frameworks.mmdet3 import prototype_configs
from gkd.planning.schedule import Schedule, base_batch, kept_checkpoints
from gkd.progress import without_warnings

__all__ = ['ANNOTATIONS', 'annotation_files', 'build_model', 'build_optimizer', 'describe_images',
           'distillation_config', 'image_size', 'images_per_pass', 'load_config',
           'prototype_configs', 'prototype_datasets', 'schedule_of', 'total_loss',
           'untrained_model']

ANNOTATIONS = 'train_dataloader.dataset.ann_file'  # where training annotations are named
# What of `optim_wrapper` the optimiser itself is built from; the rest is how its steps are made.
OPTIMIZER = ('constructor', 'optimizer', 'paramwise_cfg')


def build_optimizer(model: nn.Module, config: Config) -> Optimizer:
    """The optimiser of a config.

    Raises:
        ConfigError: It cannot be built.
    """
    settings = config.get('optim_wrapper') or {}
    # MMEngine would log the settings of every single parameter.
    with naming(f'optim_wrapper = {dict(settings)}'), without_warnings(), \
            DefaultScope.overwrite_default_scope('mmdet'):
        check_optimizer(settings)
        return build_optim_wrapper(model, ConfigDict(
            {name: settings[name] for name in OPTIMIZER if name in settings})).optimizer


def total_loss(detector: nn.Module, losses: dict[str, Any]) -> Tensor:
    """The loss that a step of a detector descends."""
    return detector.parse_losses(losses)[0]


def schedule_of(config: Config) -> Schedule:
    """The schedule of a config.

    Raises:
        ConfigError: A setting is missing.
    """
    with naming('train_cfg, optim_wrapper, default_hooks or auto_scale_lr'):
        by_epoch = bool(config.train_cfg.get('max_epochs'))
        length = config.train_cfg.max_epochs if by_epoch else config.train_cfg.max_iters
        hooks = config.get('default_hooks') or {}
        return Schedule(
            length=length, unit='epoch' if by_epoch else 'step',
            images=config.train_dataloader.get('batch_size') or 1,
            learning_rate=config.optim_wrapper.optimizer.get('lr'), base_batch=base_batch(config),
            # MMEngine's own hook, if the config does not set one up.
            checkpoints=kept_checkpoints(length, hooks.get('checkpoint', dict(interval=1))))


def images_per_pass(config: Config) -> int:
    """Images of a pass through the training data; wrappers may repeat some or leave some out.

    Raises:
        ConfigError: The data set cannot be built.
    """
    with naming('train_dataloader.dataset'):
        return len(build_dataset(config.train_dataloader.dataset))


def annotation_files(entry: ConfigDict) -> list[str]:
    """Paths of the annotation files that the config of a data set without wrappers names."""
    path = entry.get('ann_file')
    return [osp.join(entry.get('data_root') or '', path)] if path else []


def prototype_datasets(config: Config) -> list[Dataset]:
    """The data sets that prototypes come from; their images need not be there.

    Raises:
        ConfigError: A data set cannot be built.
    """
    with naming('train_dataloader.dataset'):
        return [build_dataset(entry) for entry in prototype_configs(config)]
