"""What the commands for MMDetection 3 share."""

from __future__ import annotations

import os.path as osp
from typing import Optional

from mmengine.config import Config, ConfigDict

from gkd.commands.export import write_student
from gkd.detectors.source import DetectorSource, find_file, read_config
from gkd.errors import ConfigError
from gkd.frameworks import build_detector


def load_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config of MMDetection 3.

    Args:
        path: The file. A config is Python and is run: take it from people you trust.
        options: Settings that replace the file's, by dotted name, as from ``--cfg-options``.

    Raises:
        ConfigError: It cannot be read, or is of MMDetection 2.
    """
    found = find_file(path)
    if found is None:
        raise ConfigError(f'no such config file: {path}')
    config = read_config(found)
    config.merge_from_dict(options or {})
    if 'data' in config and 'train_dataloader' not in config:
        raise ConfigError(
            f'config {path} is one of MMDetection 2 (it has `data`), and MMDetection 3 is '
            f'installed. Take one from configs/mmdet3/, or use the other MMDetection: '
            f'bash tools/setup.sh --mmdet 2.')
    for key in ('model', 'train_dataloader'):
        if key not in config:
            raise ConfigError(f'config {path} has no `{key}`; it must describe a detector '
                              f'(`model`) and its data (`train_dataloader`).')
    if config.get('work_dir') is None:
        config.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(path))[0])
    return config


def detector_config(config: Config) -> ConfigDict:
    """The student's ``model`` of a distillation config, and any other config's own."""
    if config.model.type != 'Distiller':
        return config.model
    return DetectorSource.parse(config.model.student, 'model.student').model_config()


def export_student(config: Config, checkpoint: str, output: str) -> None:
    """Write a checkpoint that plain MMDetection loads strictly into the student's own config.

    Args:
        config: The distillation config.
        checkpoint: A checkpoint of its training.
        output: File to write; it appears whole or not at all.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not hold this config's student.
        ConfigError: ``output`` is the checkpoint itself, or the config distils nothing.
    """
    if config.model.type != 'Distiller':
        raise ConfigError(f'{config.filename} distils nothing: its `model` is a '
                          f'{config.model.type}.')
    write_student(build_detector(detector_config(config)), checkpoint, output)
