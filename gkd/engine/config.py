"""Read a config of MMDetection 3, and build the detector that it describes."""

from __future__ import annotations

import copy
import os.path as osp
from typing import Optional

from mmengine.config import Config, ConfigDict

from gkd.commands.values import check_dicts
from gkd.detectors.config_files import find_file, read_config
from gkd.detectors.replacement import apply_options
from gkd.detectors.source import DetectorSource, without_checkpoints
from gkd.errors import ConfigError, naming
from gkd.frameworks import BaseDetector, build_detector
from gkd.progress import without_warnings

# Settings that are dicts, where a config has them.
DICTS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg',
         'optim_wrapper', 'optim_wrapper.clip_grad', 'default_hooks', 'default_hooks.checkpoint',
         'randomness', 'auto_scale_lr')


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
    apply_options(config, options)
    if config.get('default_scope') is None:
        config.default_scope = 'mmdet'  # a config in the new style needs none for its own classes
    if 'data' in config and 'train_dataloader' not in config:
        raise ConfigError(
            f'config {path} is one of MMDetection 2 (it has `data`), and MMDetection 3 is '
            f'installed. Take one from configs/mmdet3/, or use the other MMDetection: '
            f'bash tools/setup.sh --mmdet 2.')
    check_dicts(config, DICTS)
    for key in ('model', 'train_dataloader'):
        if key not in config or config.model is None:
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


def student_config(config: Config) -> Config:
    """The student's own config, without what a distillation adds; any other config as it is."""
    if config.model.type != 'Distiller':
        return config
    own = Config(config.to_dict())
    own.model = detector_config(config)
    # This project's are for a training.
    own.pop('custom_hooks', None)
    (own.get('default_hooks') or {}).pop('checkpoint', None)
    imports = (own.get('custom_imports') or {}).get('imports') or []
    others = [name for name in ([imports] if isinstance(imports, str) else imports)
              if name != 'gkd']
    own.custom_imports = dict(imports=others, allow_failed_imports=False) if others else None
    return own


def build_model(config: Config) -> BaseDetector:
    """Build ``config.model``.

    Raises:
        ConfigError: MMDetection cannot build it.
    """
    with naming(f'`model` of {config.filename} cannot be built', Exception):
        return build_detector(config.model)


def untrained_model(config: Config) -> BaseDetector:
    """Build ``config.model`` without reading checkpoints.

    Raises:
        ConfigError: MMDetection cannot build it.
    """
    config = copy.deepcopy(config)
    config.model = without_checkpoints(config.model)
    with without_warnings():
        return build_model(config)
