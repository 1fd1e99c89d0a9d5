"""The student's weights of a distillation's checkpoint, and the files that it is exported to."""

from __future__ import annotations

import os.path as osp
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.compat.weights import class_names, ema_copies, get_state_dict, load_strictly
from gkd.errors import ConfigError
from gkd.files import write_atomically, written_whole

STUDENT_PREFIX = 'student.'
# Begins the configs that are written here; files that begin otherwise are the user's own.
HEADER = '# Of the checkpoint beside it. Written by tools/export_student.py.\n'


def student_weights(checkpoint: dict, source: str) -> dict[str, Tensor]:
    """The student's weights under a plain detector's names.

    Args:
        checkpoint: A loaded checkpoint, of a distiller or of a plain detector.
        source: The file it comes from, for messages.

    Returns:
        State dict of the student; a plain detector's is returned as it is.

    Raises:
        CheckpointError: There are no weights in it.
    """
    weights = get_state_dict(checkpoint, source)
    for name in ema_copies(weights):
        del weights[name]
    student = {name[len(STUDENT_PREFIX):]: tensor for name, tensor in weights.items()
               if name.startswith(STUDENT_PREFIX)}
    return student or weights


def load_student(student: nn.Module, checkpoint: str) -> None:
    """Fill a detector with its weights, or with those of the student of a distillation.

    Its attribute ``CLASSES`` becomes the names of the classes that they were trained on, None if
    the checkpoint does not hold them.

    Args:
        student: The detector.
        checkpoint: A checkpoint of a distiller or of a plain detector.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
    """
    loaded = load_checkpoint_file(checkpoint)
    load_strictly(student, student_weights(loaded, checkpoint), checkpoint)
    student.CLASSES = class_names(loaded)


def export(config: Any, build: Callable[[Any], nn.Module], file: Optional[str], checkpoint: str,
           output: str) -> str:
    """Write a checkpoint that plain MMDetection loads strictly into the student's own config.

    Args:
        config: That config, of either MMDetection.
        build: Builds its detector.
        file: The file that it is; None writes one beside ``output``.
        checkpoint: A checkpoint of the training.
        output: File to write; it appears whole or not at all.

    Returns:
        Path of the config's file.

    Raises:
        CheckpointError: The checkpoint cannot be read or holds another student.
        ConfigError: ``output`` is the checkpoint itself, or the config's place is taken.
    """
    loaded = load_checkpoint_file(checkpoint)
    if osp.exists(output) and osp.samefile(checkpoint, output):
        raise ConfigError(f'{output} is the checkpoint to export from; name another file.')
    beside = f'{osp.splitext(output)[0]}.py'
    if file is None:
        check_written_here(beside)
    weights = student_weights(loaded, checkpoint)
    load_strictly(build(config), weights, checkpoint)
    with written_whole(output) as whole:
        torch.save(dict(meta=exported_meta(loaded), state_dict=weights), whole)
    if file is None:
        write_atomically(beside, HEADER + config.pretty_text)
    return file or beside


def check_written_here(path: str) -> None:
    """Raise ConfigError if a file is there that is not one of an earlier export."""
    if not osp.lexists(path):
        return
    with open(path, 'rb') as file:
        if file.read(len(HEADER)) != HEADER.encode():
            raise ConfigError(f'{path} is there already, where the config of the exported student '
                              f'would go. Move it away, or name another file to export to.')


def exported_meta(checkpoint: dict) -> dict:
    """What plain MMDetection asks an exported checkpoint besides weights, in plain values.

    Args:
        checkpoint: The loaded checkpoint of a training.

    Returns:
        The classes as MMDetection 2.x (``CLASSES``) and as 3.x (``dataset_meta``, with the colours
        if there are any) look them up, and where the weights come from.
    """
    given = checkpoint.get('meta') or {}
    meta = {name: given[name] for name in ('epoch', 'iter', 'mmdet_version', 'mmengine_version')
            if name in given}
    classes = class_names(checkpoint)
    if classes is not None:
        meta['CLASSES'] = classes
        meta['dataset_meta'] = dict(classes=classes)
        palette = (given.get('dataset_meta') or {}).get('palette')
        if isinstance(palette, (list, tuple)):
            meta['dataset_meta']['palette'] = [tuple(map(int, colour)) for colour in palette]
    return meta
