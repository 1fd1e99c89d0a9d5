"""Detectors and data of a config of MMDetection 3."""

from __future__ import annotations

from mmengine.config import Config, ConfigDict

from gkd.distiller import Distiller
from gkd.engine.commands import load_config
from gkd.errors import ConfigError
from gkd.frameworks import Dataset, build_dataset, build_detector
from gkd.frameworks.mmdet3 import leaf_configs, prototype_configs

__all__ = ['build_model', 'load_config', 'prototype_datasets', 'validation_config',
           'validation_datasets']


def build_model(config: Config) -> Distiller:
    """Build ``config.model``."""
    return build_detector(config.model)


def prototype_datasets(config: Config) -> list[Dataset]:
    """The training data, as tests see them."""
    return [build_dataset(entry) for entry in prototype_configs(config)]


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
        ConfigError: There are none.
    """
    return [build_dataset(entry) for entry in leaf_configs(validation_config(config))]
