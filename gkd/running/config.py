"""Read a config, and build the detector that it describes."""

from __future__ import annotations

from typing import Optional

from mmcv import Config
from mmdet.models import build_detector
from mmdet.models.detectors import BaseDetector
from mmdet.utils import compat_cfg, replace_cfg_vals, update_data_root

from gkd.commands.values import check_dicts
from gkd.detectors.config_files import find_file, read_config
from gkd.detectors.replacement import apply_options
from gkd.detectors.source import DetectorSource, without_checkpoints
from gkd.distiller import Distiller
from gkd.errors import ConfigError, naming
from gkd.progress import without_warnings
from gkd.running.images import adapt_images

# Settings that are dicts, where a config has them.
DICTS = ('model', 'data', 'data.train_dataloader', 'data.val_dataloader', 'data.test_dataloader',
         'runner', 'optimizer', 'optimizer_config', 'optimizer_config.grad_clip', 'lr_config',
         'fp16', 'evaluation', 'checkpoint_config', 'log_config', 'auto_scale_lr')


def load_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config file.

    Args:
        path: The file, found as :class:`~gkd.detectors.source.DetectorSource` finds a
            detector's. A config is Python and is run: take it from people you trust.
        options: Settings that replace the file's, by dotted name, as from ``--cfg-options``.

    Returns:
        The config, in today's form of MMDetection 2.x.

    Raises:
        ConfigError: The file does not exist or cannot be read, or an option names no setting.
    """
    found = find_file(path)
    if found is None:
        raise ConfigError(f'no such config file: {path}')
    config = read_config(found)
    try:
        config = replace_cfg_vals(config)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f'config {path}: cannot fill in ${{...}}: {error}') from error
    apply_options(config, options)
    check_form(config, path)
    update_data_root(config)
    try:
        config = compat_cfg(config)
        # Their values now have other names. With both, a saved config could not be read again.
        config.data.pop('imgs_per_gpu', None)
        config.pop('total_epochs', None)
        return config
    except (AttributeError, KeyError, AssertionError, TypeError) as error:
        raise ConfigError(f'config {path}: {error}') from None


def check_form(config: Config, path: str) -> None:
    """Raise ConfigError if a config is not one of MMDetection 2 or lacks a required setting."""
    if 'train_dataloader' in config and 'data' not in config:
        raise ConfigError(
            f'config {path} is one of MMDetection 3 (it has `train_dataloader`), and MMDetection '
            f'2 is installed. Take one of the other folders in configs/, or use the other '
            f'MMDetection: bash tools/setup.sh --mmdet 3.')
    for key in ('model', 'data'):
        if config.get(key) is None:
            raise ConfigError(f'config {path} has no `{key}`; it must describe a detector '
                              f'(`model`) and its data sets (`data`).')
    check_dicts(config, DICTS)
    for key, value in config.data.items():
        if value is None:
            raise ConfigError(f'config {path}: data.{key} = None; leave it out, or give its '
                              f'settings.')
    if config.get('runner') is None and 'total_epochs' not in config:
        raise ConfigError(f'config {path} has no `runner`, which says how long to train: '
                          f'runner = dict(type="EpochBasedRunner", max_epochs=12).')
    former, epochs = config.get('total_epochs'), (config.get('runner') or {}).get('max_epochs')
    if None not in (former, epochs) and former != epochs:
        raise ConfigError(f'config {path}: total_epochs = {former} and runner.max_epochs = '
                          f'{epochs} differ. The first is the former name of the second: give '
                          f'both the same number.')


def student_config(config: Config) -> Config:
    """The config to test with: a distillation config's own student, any other config as it is."""
    if config.model.type != Distiller.__name__:
        return config
    config = Config(config._cfg_dict.to_dict(), filename=config.filename)
    config.model = DetectorSource.parse(config.model.student, 'model.student').model_config()
    return config


def build_model(config: Config) -> BaseDetector:
    """Build ``config.model``; a teacher gets images as in its own training.

    Raises:
        ConfigError: MMDetection cannot build it.
    """
    with naming(f'`model` of {config.filename} cannot be built', Exception):
        model = build_detector(config.model, train_cfg=config.get('train_cfg'),
                               test_cfg=config.get('test_cfg'))
    if isinstance(model, Distiller):
        with naming('model.teacher, model.student or the pipelines of data'):
            adapt_images(model, config)
    return model


def untrained_model(config: Config) -> BaseDetector:
    """Build ``config.model`` without reading checkpoints.

    Raises:
        ConfigError: MMDetection cannot build it.
    """
    config = Config(config._cfg_dict.to_dict(), filename=config.filename)
    config.model = without_checkpoints(config.model)
    with without_warnings():
        return build_model(config)
