"""A distillation without a config: how a command names the pair, and what it says of it."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Sequence
from typing import Any, Callable, Optional

from torch import nn

from gkd.checkpoints import FOLDER, download
from gkd.errors import ConfigError, did_you_mean
from gkd.files import write_atomically
from gkd.frameworks import MMDET_SCOPE
from gkd.registry import KNOWLEDGE
from gkd.repository import tool
from gkd.resume import START_SETTINGS, start_of
from gkd.zoo import PublishedCheckpoint, of_configs

GKD = 'RobustDistillingModule'
# Instead of a checkpoint's path: the one that MMDetection's model zoo has published.
ZOO = 'zoo'
HEADER = '''\
# {student}, taught by {teacher}. Written by `bash tools/distill.sh`.
# Keep and edit it: bash tools/train.sh {path} trains it.
'''


def pair_config(student: str, teacher: str, methods: str,
                load_config: Callable[[str], Any]) -> Any:
    """The student's own config with a distiller for a model, and a work dir of the pair.

    Args:
        student: ``CONFIG`` or ``CONFIG:CHECKPOINT``; the config's data, schedule and head are
            used. A path, or ``mmdet::...`` for one that the installed MMDetection ships. Without
            a checkpoint, the student starts with the one that its own config starts with, if any.
        teacher: ``CONFIG:CHECKPOINT``.
        methods: Names of kinds of knowledge joined by ``+``; ``gkd`` is this project's own in the
            paper's form, ``class-space`` the same with global knowledge in the class space.
        load_config: Reads a config of the installed MMDetection.

    Raises:
        ConfigError: A config cannot be read, a name is unknown, or a part is missing.
    """
    settings = pair_settings(student, teacher, methods)
    own = settings['student']['config']
    config = load_config(own)
    if config.model.type == settings['type']:
        raise ConfigError(f'{own} is a distillation config already: bash {tool("train.sh")} '
                          f'{own} trains it.')
    start = take_start(config)
    if settings['student']['checkpoint'] is None:
        settings['student']['checkpoint'] = start
    config.model = settings
    # Not the student's own work dir: the student's training would be mistaken for this one.
    config.work_dir = default_folder(settings)
    scaling = config.get('auto_scale_lr')
    if scaling and 'base_batch_size' in scaling:
        scaling.enable = True  # a rate for 16 images is too high for those of one GPU
    return config


def take_start(config: Any) -> Optional[str]:
    """Remove a checkpoint that a detector's own training begins with from its config.

    A distillation could not load it: its checkpoints hold a distiller.

    Args:
        config: The detector's own config, of either MMDetection; changed in place.

    Returns:
        The checkpoint, None if the training begins without one.
    """
    start = start_of(config)
    for name in ('resume', *START_SETTINGS):
        config.pop(name, None)
    return start


def pair_settings(student: str, teacher: str, methods: str) -> dict[str, Any]:
    """The ``model`` of a distillation.

    Args:
        student: ``CONFIG`` or ``CONFIG:CHECKPOINT``.
        teacher: ``CONFIG:CHECKPOINT``.
        methods: Names of kinds of knowledge joined by ``+``.

    Raises:
        ConfigError: A name is unknown, or the teacher's checkpoint is missing.

    Example:
        >>> pair_settings('s.py', 't.py:t.pth', 'pkd')['teacher']
        {'config': 't.py', 'checkpoint': 't.pth'}
    """
    own, checkpoint = split(student)
    teachers, weights = split(teacher)
    if weights is None:
        raise ConfigError(f'{teacher}: the teacher needs its checkpoint, as CONFIG:CHECKPOINT, or '
                          f'CONFIG:{ZOO} for that of the model zoo; an untrained teacher teaches '
                          f'noise.')
    return dict(
        type='Distiller',
        teacher=dict(config=teachers, checkpoint=weights),
        student=dict(config=own, checkpoint=checkpoint),
        prototypes=dict(type='PrototypeGenerationModule'),
        knowledge=knowledge_of(methods))


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


def fetch_from_zoo(*specs: str) -> list[str]:
    """Get the checkpoints of the detectors that are to start with the model zoo's.

    Args:
        *specs: ``CONFIG``, ``CONFIG:CHECKPOINT``, or ``CONFIG:zoo`` with a config that the
            installed MMDetection ships.

    Returns:
        The same with the path of the file for ``zoo``.

    Raises:
        ConfigError: The zoo has none for a config; nothing is downloaded then.
        CheckpointError: One cannot be downloaded, or another file was sent.
    """
    entries = [of_zoo(spec) for spec in specs]
    for entry in filter(None, entries):
        download(entry, FOLDER)
    return [spec if entry is None else
            f'{split(spec)[0]}:{osp.join(osp.basename(FOLDER), entry.name)}'
            for spec, entry in zip(specs, entries)]


def of_zoo(spec: str) -> Optional[PublishedCheckpoint]:
    """The published checkpoint that a ``CONFIG:zoo`` stands for; None for other detectors."""
    config, checkpoint = split(spec)
    if checkpoint != ZOO:
        return None
    found = next(of_configs(config), None) if config.startswith(MMDET_SCOPE) else None
    if found is None:
        raise ConfigError(f'{spec}: the model zoo has no checkpoint of this config; '
                          f'python {tool("checkpoints.py")} list {MMDET_SCOPE} shows those that '
                          f'it has.')
    return found


def knowledge_of(methods: str) -> list[dict[str, Any]]:
    """Configs of kinds of knowledge whose names are joined by ``+``.

    Raises:
        ConfigError: A name is unknown.

    Example:
        >>> knowledge_of('gkd+fgd')
        [{'type': 'RobustDistillingModule'}, {'type': 'FGD'}]
        >>> knowledge_of('class-space')[0]['global_knowledge']
        {'space': 'classes'}
    """
    known = {name.lower(): dict(type=name) for name in KNOWLEDGE.module_dict}
    known['gkd'] = known.pop(GKD.lower())
    known['class-space'] = dict(known['gkd'], global_knowledge=dict(space='classes'))
    names = [name.lower() for name in methods.split('+')]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f'--method {methods}: {", ".join(unknown)} is unknown; known are '
                          f'{", ".join(sorted(known))}.{did_you_mean(unknown[0], known)}')
    return [known[name] for name in names]


def default_folder(settings: dict[str, Any]) -> str:
    """The work dir of a pair.

    Example:
        >>> default_folder(pair_settings('mine/s.py', 't.py:t.pth', 'gkd'))
        'work_dirs/distill/s_from_t'
    """
    student, teacher = (osp.splitext(osp.basename(settings[role]['config']))[0]
                        for role in ('student', 'teacher'))
    return osp.join('work_dirs', 'distill', f'{student}_from_{teacher}')


def teaching(model: nn.Module) -> list[tuple[str, str]]:
    """What a distiller teaches and what it leaves out, as names and texts.

    Args:
        model: The :class:`~gkd.distiller.Distiller`.
    """
    pair = model.pair
    rows = [(role, describe(model, role)) for role in ('student', 'teacher')]
    channels = [', '.join(map(str, sorted(set(pair.channels(info)))))
                for info in (pair.student, pair.teacher)]
    rows.append(('maps', f'strides {", ".join(map(str, pair.strides))}; {channels[0]} channels '
                         f'of the student, {channels[1]} of the teacher'))
    for kind in model.knowledge:
        rows.append(('teaches', kind.describe()))
        if kind.describe_left_out():
            rows.append(('leaves out', kind.describe_left_out()))
    rows.append(('classes', classes(model)))
    return rows


def describe(model: nn.Module, role: str) -> str:
    """A detector in words."""
    detector, source = getattr(model, role), getattr(model, f'{role}_source')
    weights = source.checkpoint or 'weights as its config says'
    return f'{type(detector).__name__} of {source.config}, {weights}'


def classes(model: nn.Module) -> str:
    """The number of classes and whether the teacher's checkpoint names them."""
    names: Sequence[str] = getattr(model.teacher, 'CLASSES', None) or ()
    if len(names) > model.pair.num_classes:
        return f'{model.pair.num_classes} of the teacher\'s {len(names)}, chosen by their names'
    if not names:
        return (f'{model.pair.num_classes}; the teacher\'s checkpoint does not name them, so see '
                f'that they are in the same order')
    return (f'{model.pair.num_classes}, to the teacher {", ".join(names[:4])}'
            + (', ...' if len(names) > 4 else '')
            + '; the training stops if the data has them in another order')


def keep_config(config: Any) -> str:
    """Write a distillation config into its work dir; returns its path.

    Args:
        config: A config of either MMDetection.
    """
    # The name of the pair: other commands name what they write by that of the config.
    path = osp.join(config.work_dir, f'{osp.basename(osp.abspath(config.work_dir))}.py')
    names = {role: config.model[role].config for role in ('student', 'teacher')}
    write_atomically(path, HEADER.format(path=path, **names) + config.pretty_text)
    return path


def as_lines(rows: Sequence[tuple[str, str]], path: str) -> list[str]:
    """The lines that a command prints.

    Args:
        rows: Names and texts.
        path: Path of the config that was written.
    """
    return [f'{name:10} {text}' for name, text in [*rows, ('config', path)]]


def counted(number: int, thing: str) -> str:
    """A number with its noun, in the plural unless it is 1.

    Example:
        >>> counted(1, 'epoch'), counted(12, 'epoch')
        ('1 epoch', '12 epochs')
    """
    return f'{number} {thing}' + ('' if number == 1 else 's')
