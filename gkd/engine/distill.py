"""Make a distillation config of a student's own config for MMDetection 3."""

from __future__ import annotations

from typing import Optional

from mmengine.config import Config

from gkd.commands.distillation import pair_config
from gkd.detectors.replacement import apply_options
from gkd.distiller import Distiller
from gkd.engine.config import load_config

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
    # Some configs keep it beside the model, too. MMEngine would pass it to the distiller, which
    # takes that of the student.
    config.pop('data_preprocessor', None)
    config.custom_hooks = [*(dict(type=name) for name in HOOKS),
                           *(config.get('custom_hooks') or ())]
    config.merge_from_dict({'default_hooks.checkpoint.type': 'ResumableCheckpointHook'})
    imports = config.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    named = [imports['imports']] if isinstance(imports['imports'], str) else imports['imports']
    config.custom_imports = dict(imports, imports=list(dict.fromkeys(['gkd', *named])))
    apply_options(config, options)
    return config


def describe_images(model: Distiller, config: Config) -> str:
    """Whether the images that the student trains on are converted for the teacher.

    Args:
        model: The distiller.
        config: Its config; the detectors' own preprocessors define all.
    """
    found = model.teacher_images
    return 'as the teacher was trained on' if found is None else (
        f'{found.given}; converted for the teacher, which was trained on {found.wanted}')
