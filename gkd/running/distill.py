"""Make a distillation config of a student's own config."""

from __future__ import annotations

from typing import Optional

from mmcv import Config

from gkd.commands.distillation import pair_config
from gkd.detectors.images import format_of
from gkd.detectors.replacement import apply_options
from gkd.distiller import Distiller
from gkd.running.checks import check_training
from gkd.running.config import load_config
from gkd.running.images import channel_map


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
    apply_options(config, options)
    check_training(config)
    return config


def describe_images(model: Distiller, config: Config) -> str:
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
