"""Make a distillation config of a student's own config for MMDetection 3."""

from __future__ import annotations

import logging
from typing import Optional

from mmengine.config import Config

from gkd.commands.distillation import as_lines, counted, keep_config, pair_config, teaching
from gkd.distiller import Distiller
from gkd.engine.commands import load_config
from gkd.frameworks import build_detector, logger

HOOKS = ('PrototypeHook', 'FiniteLossHook', 'ReportHook')


def distillation_config(student: str, teacher: str, methods: str = 'gkd',
                        options: Optional[dict] = None) -> Config:
    """The config of a distillation: the student's own, with a distiller and its hooks.

    Args:
        student: As in :func:`~gkd.commands.distillation.pair_config`.
        teacher: Likewise.
        methods: Likewise.
        options: Settings that replace the config's, by dotted name.

    Raises:
        ConfigError: A config cannot be read, a name is unknown, or a part is missing.
    """
    config = pair_config(student, teacher, methods, load_config)
    config.custom_hooks = [*(dict(type=name) for name in HOOKS),
                           *(config.get('custom_hooks') or ())]
    config.merge_from_dict({'default_hooks.checkpoint.type': 'ResumableCheckpointHook'})
    imports = config.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    named = [imports['imports']] if isinstance(imports['imports'], str) else imports['imports']
    config.custom_imports = dict(imports, imports=list(dict.fromkeys(['gkd', *named])))
    config.merge_from_dict(options or {})
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
    """How long, how many images per step, and how fast."""
    loop, scaling = config.train_cfg, config.get('auto_scale_lr') or {}
    length = (counted(loop.max_epochs, 'epoch') if loop.get('max_epochs')
              else counted(loop.get('max_iters'), 'step'))
    batch = config.train_dataloader.get('batch_size')
    base = config.optim_wrapper.optimizer.get('lr')
    if batch is None or base is None:  # a batch sampler or the optimiser has its own
        return length
    scaled = base * batch * gpus / scaling.base_batch_size if scaling.get('enable') else base
    return (f'{length}, {batch * gpus} images a step, learning rate {scaled:g}'
            + (f' (scaled from {base:g})' if base != scaled else ''))
