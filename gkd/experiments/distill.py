"""Make a distillation config of a student's own config, and say what it will teach and cost."""

from __future__ import annotations

import logging
import os
import os.path as osp
import re
from collections.abc import Sequence
from typing import Optional, Union

import mmcv
import torch
from mmcv import Config, ConfigDict

from gkd.detectors.images import format_of
from gkd.detectors.inspection import isolated_random_numbers
from gkd.distiller import Distiller
from gkd.errors import ConfigError
from gkd.experiments.plan import TrainingPlan, make_plan
from gkd.files import write_atomically
from gkd.registry import KNOWLEDGE
from gkd.running.config import build_model, load_config
from gkd.running.console import without_details
from gkd.running.images import channel_map
from gkd.running.train import check_training

GKD = 'RobustDistillingModule'
HEADER = '''\
# {student}, taught by {teacher}. Written by `bash tools/distill.sh`.
# Keep and edit it: bash tools/train.sh {path} trains it.
'''


def distillation_config(student: str, teacher: str, methods: str = 'gkd',
                        options: Optional[dict] = None) -> Config:
    """The config of a distillation: the student's own, with a distiller for a model.

    Args:
        student: ``CONFIG`` or ``CONFIG:CHECKPOINT``; the config's data, schedule and head are
            used. A path, or ``mmdet::...`` for one that the installed MMDetection ships.
        teacher: ``CONFIG:CHECKPOINT``.
        methods: Names of kinds of knowledge joined by ``+``; ``gkd`` is this project's own.
        options: Settings that replace the config's, by dotted name.

    Raises:
        ConfigError: A config cannot be read, a name is unknown, or a part is missing.
    """
    own, checkpoint = split(student)
    teachers, weights = split(teacher)
    if weights is None:
        raise ConfigError(f'{teacher}: the teacher needs its checkpoint, as CONFIG:CHECKPOINT; an '
                          f'untrained teacher teaches noise.')
    config = load_config(own)
    if config.model.type == Distiller.__name__:
        raise ConfigError(f'{own} is a distillation config already: bash tools/train.sh {own} '
                          f'trains it.')
    knowledge = [dict(type=name) for name in kinds_of(methods)]
    config.model = ConfigDict(
        type=Distiller.__name__,
        teacher=dict(config=teachers, checkpoint=weights),
        student=dict(config=own, checkpoint=checkpoint),
        prototypes=dict(type='PrototypeGenerationModule'),
        knowledge=knowledge)
    for name in ('train_cfg', 'test_cfg'):
        config.pop(name, None)
    scaling = config.get('auto_scale_lr')
    if scaling and 'base_batch_size' in scaling:
        scaling.enable = True  # a rate for 16 images is too high for those of one GPU
    if options:
        config.merge_from_dict(options)
    config.setdefault('work_dir', None)
    if config.work_dir is None:
        config.work_dir = osp.join('work_dirs', 'distill', f'{stem(own)}_from_{stem(teachers)}')
    check_training(config)
    return config


def split(spec: str) -> tuple[str, Optional[str]]:
    """Config and checkpoint of ``CONFIG`` or ``CONFIG:CHECKPOINT``.

    Example:
        >>> split('mmdet::atss/atss_r50_fpn_1x_coco.py:atss.pth')
        ('mmdet::atss/atss_r50_fpn_1x_coco.py', 'atss.pth')
        >>> split('mine.py')
        ('mine.py', None)
    """
    match = re.fullmatch(r'(.+?\.py)(?::(.+))?', spec)
    if match is None:
        raise ConfigError(f'{spec}: must be CONFIG or CONFIG:CHECKPOINT, and a config ends with '
                          f'.py.')
    return match[1], match[2]


def kinds_of(methods: str) -> list[str]:
    """Registered names of kinds of knowledge that are joined by ``+``.

    Example:
        >>> kinds_of('gkd+fgd')
        ['RobustDistillingModule', 'FGD']
    """
    known = {name.lower(): name for name in KNOWLEDGE.module_dict}
    known['gkd'] = known.pop(GKD.lower())
    names = [name.lower() for name in methods.split('+')]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f'--method {methods}: {", ".join(unknown)} is unknown; known are '
                          f'{", ".join(sorted(known))}.')
    return [known[name] for name in names]


def stem(path: str) -> str:
    """Name of a file without folder and ending."""
    return osp.splitext(osp.basename(path))[0]


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
    # Beside the copy that the training itself writes, under another name.
    path = osp.join(config.work_dir, 'distill.py')
    os.makedirs(config.work_dir, exist_ok=True)
    names = {role: config.model[role].config for role in ('student', 'teacher')}
    write_atomically(path, HEADER.format(path=path, **names) + config.pretty_text)
    return path, summary(config, model, plan) + [f'{"config":10} {path}']


def summary(config: Config, model: Distiller, plan: Union[TrainingPlan, str]) -> list[str]:
    """What is taught, what is left out and why, and what it costs, or why that is not known."""
    pair = model.pair
    rows = [(role, describe(model, config, role)) for role in ('student', 'teacher')]
    channels = [', '.join(map(str, sorted(set(pair.channels(info)))))
                for info in (pair.student, pair.teacher)]
    rows.append(('maps', f'strides {", ".join(map(str, pair.strides))}; {channels[0]} channels '
                         f'of the student, {channels[1]} of the teacher'))
    for kind in model.knowledge:
        rows.append(('teaches', taught(kind)))
        if getattr(kind, 'left_out', '') and kind.soft_label is None:
            rows.append(('leaves out', f'soft labels: {kind.left_out}'))
    rows.append(('classes', classes(model)))
    rows.append(('images', images(model, config)))
    if isinstance(plan, str):
        rows.append(('costs', f'not known: {plan}'))
        return [f'{name:10} {text}' for name, text in rows]
    base, scaled = plan.learning_rate
    rows.append(('schedule', f'{config.runner.max_epochs} epochs, {plan.images * plan.gpus} '
                             f'images a step, learning rate {scaled:g}'
                 + (f' (scaled from {base:g})' if base != scaled else '')))
    cost = plan.cost
    share = (cost.student + cost.teacher + cost.extra) / max(cost.student, 1)
    rows.append(('costs', f'{share:.1f} times the operations of training the student alone; '
                          f'{plan.memory / 2**30:.1f} GiB of each GPU, before what CUDA takes'))
    return [f'{name:10} {text}' for name, text in rows]


def taught(kind: torch.nn.Module) -> str:
    """A kind of knowledge in words."""
    if type(kind).__name__ != GKD:
        return type(kind).__name__
    parts = [name for name, part in (('global knowledge', kind.global_knowledge),
                                     ('local knowledge', kind.local_knowledge),
                                     ('soft labels', kind.soft_label)) if part is not None]
    at = {'positives': 'the positives that the student trains on',
          'gt': 'the ground-truth boxes'}[kind.instances]
    if kind.soft_label is not None and kind.pair.student.trains_places:
        places = parts.pop()
        at += f'; {places} at the cells that the student trains as objects'
    return f'{", ".join(parts)} at {at}'


def describe(model: Distiller, config: Config, role: str) -> str:
    """A detector in words."""
    detector, source = getattr(model, role), config.model[role]
    weights = source.checkpoint or 'weights as its config says'
    return f'{type(detector).__name__} of {source.config}, {weights}'


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


def classes(model: Distiller) -> str:
    """The number of classes and whether the teacher's checkpoint names them."""
    names: Sequence[str] = getattr(model.teacher, 'CLASSES', None) or ()
    if not names:
        return (f'{model.pair.num_classes}; the teacher\'s checkpoint does not name them, so see '
                f'that they are in the same order')
    return (f'{model.pair.num_classes}, to the teacher {", ".join(names[:4])}'
            + (', ...' if len(names) > 4 else '')
            + '; the training stops if the data has them in another order')
