"""Make a distillation config of a student's own config, and say what it will teach and cost."""

from __future__ import annotations

import logging
from typing import Optional, Union

import mmcv
from mmcv import Config

from gkd.commands.distillation import as_lines, counted, keep_config, pair_config, teaching
from gkd.detectors.images import format_of
from gkd.detectors.inspection import isolated_random_numbers
from gkd.distiller import Distiller
from gkd.errors import ConfigError
from gkd.experiments.plan import TrainingPlan, make_plan
from gkd.progress import without_details
from gkd.running.config import build_model, load_config
from gkd.running.images import channel_map
from gkd.running.train import check_training


def distillation_config(student: str, teacher: str, methods: str = 'gkd',
                        options: Optional[dict] = None) -> Config:
    """The config of a distillation: the student's own, with a distiller as its model.

    Args:
        student: As in :func:`~gkd.commands.distillation.pair_config`.
        teacher: Likewise.
        methods: Likewise.
        options: Settings that replace the config's, by dotted name.

    Raises:
        ConfigError: A config cannot be read, a name is unknown, or a part is missing.
    """
    config = pair_config(student, teacher, methods, load_config)
    for name in ('train_cfg', 'test_cfg'):
        config.pop(name, None)
    config.merge_from_dict(options or {})
    check_training(config)
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
    logger = mmcv.utils.get_logger('mmdet')
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with isolated_random_numbers(), without_details():
            model = build_model(config)
            model.init_weights()
        try:
            plan = make_plan(config, gpus)
        except ConfigError as error:  # it needs more than images with boxes, masks for instance
            plan = str(error)
    finally:
        logger.setLevel(level)
    path = keep_config(config)
    return path, as_lines(summary(config, model, plan), path)


def summary(config: Config, model: Distiller,
            plan: Union[TrainingPlan, str]) -> list[tuple[str, str]]:
    """What is taught, what is left out and why, and what it costs, or why that is not known."""
    rows = teaching(model)
    rows.append(('images', images(model, config)))
    if isinstance(plan, str):
        return [*rows, ('costs', f'not known: {plan}')]
    base, scaled = plan.learning_rate
    rows.append(('schedule', f'{counted(config.runner.max_epochs, "epoch")}, '
                             f'{plan.images * plan.gpus} '
                             f'images a step, learning rate {scaled:g}'
                 + (f' (scaled from {base:g})' if base != scaled else '')))
    cost = plan.cost
    share = (cost.student + cost.teacher + cost.extra) / max(cost.student, 1)
    rows.append(('costs', f'{share:.1f} times the operations of training the student alone; '
                          f'{plan.memory / 2**30:.1f} GiB of each GPU, before what CUDA takes'))
    return rows


def images(model: Distiller, config: Config) -> str:
    """What images the student trains on, and whether they are converted for the teacher."""
    given = format_of(config.data.get('train') or {})
    wanted = model.teacher_source.image_format()
    if given is None:
        return ('read by a step of their own and not converted; see that the teacher was trained '
                'on the same')
    if wanted is None:
        return f'{given}; what the teacher was trained on is not known: not converted'
    if channel_map(given, wanted, 'data.train') is None:
        return f'{given}, as of the teacher'
    return f'{given}; converted for the teacher, which was trained on {wanted}'
