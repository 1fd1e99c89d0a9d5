"""Make a distillation config of a student's own config for MMDetection 3."""

from __future__ import annotations

import logging
from typing import Optional

from mmengine.config import Config, ConfigDict

from gkd.commands.distillation import (
    as_lines,
    default_folder,
    keep_config,
    pair_settings,
    teaching,
)
from gkd.distiller import Distiller
from gkd.engine.commands import load_config
from gkd.errors import ConfigError
from gkd.frameworks import build_detector, logger

HOOKS = ('PrototypeHook', 'FiniteLossHook', 'ReportHook')


def distillation_config(student: str, teacher: str, methods: str = 'gkd',
                        options: Optional[dict] = None) -> Config:
    """The config of a distillation: the student's own, with a distiller and its hooks.

    Args:
        student: ``CONFIG`` or ``CONFIG:CHECKPOINT``; the config's data, schedule and head are
            used. A path, or ``mmdet::...`` for one that the installed MMDetection ships.
        teacher: ``CONFIG:CHECKPOINT``.
        methods: Names of kinds of knowledge joined by ``+``; ``gkd`` is this project's own.
        options: Settings that replace the config's, by dotted name.

    Raises:
        ConfigError: A config cannot be read, a name is unknown, or a part is missing.
    """
    settings = pair_settings(student, teacher, methods)
    own = settings['student']['config']
    config = load_config(own)
    if config.model.type == Distiller.__name__:
        raise ConfigError(f'{own} is a distillation config already: bash tools/train.sh {own} '
                          f'trains it.')
    config.model = ConfigDict(settings)
    config.custom_hooks = [*(dict(type=name) for name in HOOKS),
                           *(config.get('custom_hooks') or ())]
    config.merge_from_dict({'default_hooks.checkpoint.type': 'ResumableCheckpointHook'})
    imports = config.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    named = [imports['imports']] if isinstance(imports['imports'], str) else imports['imports']
    config.custom_imports = dict(imports, imports=list(dict.fromkeys(['gkd', *named])))
    scaling = config.get('auto_scale_lr')
    if scaling and 'base_batch_size' in scaling:
        scaling.enable = True  # a rate for 16 images is too high for those of one GPU
    config.merge_from_dict(options or {})
    # Not in the student's own: its training would be taken for this one.
    config.work_dir = (options or {}).get('work_dir') or default_folder(settings)
    return config


def prepare(config: Config, gpus: int = 1) -> tuple[str, list[str]]:
    """Check a distillation config, write it into its work dir, and tell what it will do.

    Args:
        config: From :func:`distillation_config`.
        gpus: Processes that will train.

    Returns:
        Path of the written config, and lines for people.

    Raises:
        GKDError: The checkpoints do not fit, or the pair cannot be distilled.
    """
    level = logger().level
    logger().setLevel(logging.WARNING)
    try:
        model = build_detector(config.model)
        model.init_weights()
    finally:
        logger().setLevel(level)
    rows = [*teaching(model), ('images', images(model)), ('schedule', schedule(config, gpus)),
            ('costs', 'not known: the forecast is of trainings with MMDetection 2')]
    path = keep_config(config)
    return path, as_lines(rows, path)


def images(model: Distiller) -> str:
    """Whether the images that the student trains on are converted for the teacher."""
    found = model.teacher_images
    return 'as the teacher was trained on' if found is None else (
        f'{found.given}; converted for the teacher, which was trained on {found.wanted}')


def schedule(config: Config, gpus: int) -> str:
    """How long, how many images a step, and how fast."""
    loop, scaling = config.train_cfg, config.get('auto_scale_lr') or {}
    length = (f'{loop.max_epochs} epochs' if loop.get('max_epochs')
              else f'{loop.get("max_iters")} steps')
    batch = config.train_dataloader.get('batch_size')
    batch = batch and batch * gpus
    base = scaled = config.optim_wrapper.optimizer.get('lr')
    if batch and base and scaling.get('enable'):
        scaled = base * batch / scaling.base_batch_size
    return (f'{length}, {batch} images a step, learning rate {scaled:g}'
            + (f' (scaled from {base:g})' if base != scaled else ''))
