"""Detectors and data of a config of MMDetection 2."""

from __future__ import annotations

from mmcv import Config, ConfigDict

from gkd.frameworks import Dataset
from gkd.running.config import build_model, load_config
from gkd.running.data import build_checked_dataset, leaf_datasets
from gkd.running.data import prototype_datasets as prototype_configs

__all__ = ['build_model', 'load_config', 'prototype_datasets', 'validation_config',
           'validation_datasets']


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
