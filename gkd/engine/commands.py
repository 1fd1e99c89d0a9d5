"""What the commands for MMDetection 3 share."""

from __future__ import annotations

import os.path as osp
from typing import Optional

from mmdet.registry import OPTIMIZERS
from mmengine.config import Config, ConfigDict

from gkd.commands.export import export
from gkd.commands.options import set_epochs
from gkd.commands.values import check_dicts
from gkd.detectors.config_files import find_file, read_config
from gkd.detectors.replacement import apply_options
from gkd.detectors.source import DetectorSource, own_file
from gkd.errors import CheckpointError, ConfigError, did_you_mean
from gkd.frameworks import build_detector
from gkd.frameworks.mmdet3 import leaf_configs
from gkd.work_dir import checkpoints, no_checkpoint

# Settings that are dicts, where a config has them.
DICTS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg',
         'optim_wrapper', 'optim_wrapper.clip_grad', 'default_hooks', 'default_hooks.checkpoint',
         'randomness', 'auto_scale_lr')
# Settings that count something, and the smallest value of each.
COUNTS = {'train_cfg.val_interval': 1, 'train_cfg.val_begin': 0,
          'default_hooks.checkpoint.interval': -1, 'default_hooks.checkpoint.max_keep_ckpts': -1,
          'default_hooks.checkpoint.inside_epoch': 0}
# What MMEngine takes together or not at all.
TOGETHER = (('train_dataloader', 'train_cfg', 'optim_wrapper'),
            ('val_dataloader', 'val_cfg', 'val_evaluator'),
            ('test_dataloader', 'test_cfg', 'test_evaluator'))


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


def choose_start(config: Config, resume: str) -> None:
    """Set what a training starts or goes on from.

    Args:
        config: The config; its ``work_dir`` is looked into.
        resume: ``'auto'`` goes on from the last checkpoint in the work dir if there is one, and
            else does what the config's own ``resume`` and ``load_from`` say; ``'never'`` starts
            anew; a path goes on from that checkpoint.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    if resume == 'never':
        if config.get('resume'):
            config.load_from = None  # it is what the config goes on from
        config.resume = False
    elif resume == 'auto':
        if checkpoints(config.work_dir):
            config.resume, config.load_from = True, None
    elif osp.isfile(resume) or '://' in resume:
        config.resume, config.load_from = True, resume
    else:
        raise CheckpointError(f'--resume: {no_checkpoint(resume)}')


def replace_epochs(config: Config, epochs: int) -> None:
    """Replace a config's number of epochs.

    Raises:
        ConfigError: It counts iterations.
    """
    set_epochs(config, 'train_cfg', epochs)


def check_optimizer(settings: dict) -> None:
    """Raise ConfigError if no optimiser has the name that a config gives; MMEngine's is unclear.

    Args:
        settings: The config's ``optim_wrapper``.
    """
    kind = (settings.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        known = {**OPTIMIZERS.parent.module_dict, **OPTIMIZERS.module_dict}
        raise ConfigError(f'optim_wrapper.optimizer.type = {kind!r} is unknown.'
                          + did_you_mean(kind, known))


def check_together(config: Config) -> None:
    """Raise ConfigError if a config has a part of what a loop needs; MMEngine prints all of it."""
    for keys in TOGETHER:
        missing = [key for key in keys if config.get(key) is None]
        if missing and len(missing) < len(keys):
            raise ConfigError(f'config {config.filename}: {", ".join(keys)} belong together, and '
                              f'it has no {", ".join(missing)}. Give all of them, or set all to '
                              f'None.')


def detector_config(config: Config) -> ConfigDict:
    """The student's ``model`` of a distillation config, and any other config's own."""
    if config.model.type != 'Distiller':
        return config.model
    return DetectorSource.parse(config.model.student, 'model.student').model_config()


def augment_tests(config: Config) -> None:
    """Let a test augment every image and merge what is detected in it, as the config says.

    Raises:
        ConfigError: The config does not say how.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if not config.get(key)]
    if missing:
        raise ConfigError(f'--tta: config {config.filename} has no {" and no ".join(missing)}; '
                          f'mmdet::retinanet/retinanet_tta.py shows both.')
    for leaf in leaf_configs(config.test_dataloader.dataset).values():
        leaf.pipeline = config.tta_pipeline
    config.model = dict(config.tta_model, module=config.model)


def export_student(config: Config, checkpoint: str, output: str) -> str:
    """Write a checkpoint that plain MMDetection loads strictly into the student's own config.

    Args:
        config: The distillation config, or the student's own.
        checkpoint: A checkpoint of a distiller or of a plain detector.
        output: File to write; it appears whole or not at all.

    Returns:
        Path of the student's own config. Where the distillation config does not just name one, it
        is written beside ``output``.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not hold this config's student.
        ConfigError: ``output`` is the checkpoint itself, or a file is where the config would go.
    """
    return export(student_config(config), lambda own: build_detector(own.model),
                  own_file(config), checkpoint, output)


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
