"""What the commands for MMDetection 3 change in a config."""

from __future__ import annotations

import os.path as osp

from mmengine.config import Config

from gkd.errors import CheckpointError, ConfigError
from gkd.frameworks.mmdet3 import leaf_configs
from gkd.work_dir import checkpoints, no_checkpoint


def choose_start(config: Config, resume: str) -> None:
    """Set the checkpoint that a training starts or resumes from.

    Args:
        config: The config; its ``work_dir`` is looked into.
        resume: ``'auto'`` resumes from the last checkpoint in the work dir if there is one, and
            else does what the config's own ``resume`` and ``load_from`` say; ``'never'`` starts
            anew; a path resumes from that checkpoint.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    if resume == 'never':
        if config.get('resume'):
            config.load_from = None  # the checkpoint that the config resumes from
        config.resume = False
    elif resume == 'auto':
        if checkpoints(config.work_dir):
            config.resume, config.load_from = True, None
    elif osp.isfile(resume) or '://' in resume:
        config.resume, config.load_from = True, resume
    else:
        raise CheckpointError(f'--resume: {no_checkpoint(resume)}')


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
