"""What a config of MMDetection 2 says of a training."""

from __future__ import annotations

from math import ceil
from typing import Any

from mmcv import Config
from mmcv.runner import build_optimizer as build_by_config
from torch import Tensor, nn
from torch.optim import Optimizer

from gkd.detectors.images import pipeline_of, steps_of
from gkd.errors import ConfigError, naming
from gkd.frameworks import Dataset, build_dataset
from gkd.planning.schedule import Schedule, base_batch, kept_checkpoints
from gkd.prototypes.hook import PrototypeHook
from gkd.running.config import build_model, load_config, untrained_model
from gkd.running.data import annotation_files, check_classes
from gkd.running.data import prototype_datasets as prototype_configs
from gkd.running.distill import describe_images, distillation_config

__all__ = ['ANNOTATIONS', 'annotation_files', 'build_model', 'build_optimizer', 'describe_images',
           'distillation_config', 'image_size', 'images_per_pass', 'load_config',
           'prototype_configs', 'prototype_datasets', 'schedule_of', 'total_loss',
           'untrained_model']

ANNOTATIONS = 'data.train.ann_file'  # where a config names its training annotations


def build_optimizer(model: nn.Module, config: Config) -> Optimizer:
    """The optimiser of a config.

    Raises:
        ConfigError: It cannot be built.
    """
    with naming('optimizer'):
        return build_by_config(model, config.optimizer)


def total_loss(detector: nn.Module, losses: dict[str, Any]) -> Tensor:
    """The loss that a step of a detector descends."""
    return detector._parse_losses(losses)[0]


def schedule_of(config: Config) -> Schedule:
    """The schedule of a config.

    Raises:
        ConfigError: A setting is missing.
    """
    with naming('runner, optimizer, data, checkpoint_config or auto_scale_lr'):
        by_epoch = bool(config.runner.get('max_epochs'))
        length = config.runner.max_epochs if by_epoch else config.runner.max_iters
        data = config.data
        return Schedule(
            length=length, unit='epoch' if by_epoch else 'step',
            images=data.get('train_dataloader', {}).get('samples_per_gpu')
            or data.get('samples_per_gpu', 1),
            learning_rate=config.optimizer.get('lr'), base_batch=base_batch(config),
            checkpoints=kept_checkpoints(length, config.get('checkpoint_config')))


def images_per_pass(config: Config) -> int:
    """Images of a pass through the training data; wrappers may repeat some or leave some out.

    Raises:
        ConfigError: The data set cannot be built.
    """
    with naming('data.train'):
        return len(build_dataset(config.data.train))


def image_size(config: Config) -> tuple[int, int]:
    """Width and height of the largest images that a config scales to, padded.

    Raises:
        ConfigError: The config names no size to scale to.
    """
    for part in ('train', 'test'):
        steps = list(steps_of(pipeline_of(config.data[part])))
        scales = [scale for step in steps if 'img_scale' in step
                  for scale in (step['img_scale'] if isinstance(step['img_scale'], list)
                                else [step['img_scale']])]
        if scales:
            divisor = max(step.get('size_divisor') or 1 for step in steps)
            longest, shortest = max(map(max, scales)), max(map(min, scales))
            return tuple(ceil(side / divisor) * divisor for side in (longest, shortest))
    raise ConfigError('neither data.train nor data.test has a pipeline with `img_scale`; give the '
                      'size of the images: --size WIDTH HEIGHT')


def prototype_datasets(config: Config) -> list[Dataset]:
    """The data sets that prototypes come from; their images need not be there.

    Raises:
        ConfigError: A data set cannot be built.
        DataError: Classes and annotations do not fit.
    """
    with naming('data.train'):
        datasets = PrototypeHook(prototype_configs(config)).datasets
    for dataset in datasets:
        check_classes(dataset, 'data.train')
    return datasets
