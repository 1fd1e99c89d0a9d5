"""Take the student out of a training checkpoint, for plain MMDetection."""

from __future__ import annotations

import os.path as osp

import torch
from mmcv import Config
from mmdet.models.detectors import BaseDetector
from torch import Tensor

from gkd.compat.checkpoint import (
    class_names,
    ema_copies,
    get_state_dict,
    load_checkpoint_file,
    load_strictly,
)
from gkd.detectors.source import DetectorSource, find_file
from gkd.distiller import Distiller
from gkd.errors import ConfigError
from gkd.files import write_atomically, written_whole
from gkd.running.config import build_model, student_config

STUDENT_PREFIX = 'student.'


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


def load_detector(config: Config, checkpoint: str) -> BaseDetector:
    """Build a detector, or a distillation config's student, with its weights, in eval mode.

    Args:
        config: A plain detector's config or a distillation config.
        checkpoint: A checkpoint of a distiller or of a plain detector.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        ConfigError: The detector cannot be built.
    """
    model = build_model(student_config(config))
    load_strictly(model, student_weights(load_checkpoint_file(checkpoint), checkpoint), checkpoint)
    return model.eval()


def export_student(config: Config, checkpoint: str, output: str) -> str:
    """Write a checkpoint that plain MMDetection loads strictly into the student's own config.

    Args:
        config: The distillation config.
        checkpoint: A checkpoint of its training.
        output: File to write; it appears whole or not at all.

    Returns:
        Path of the student's own config. Where the distillation config does not just name one, it
        is written beside ``output``.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not hold this config's student.
        ConfigError: ``output`` is the checkpoint itself.
    """
    loaded = load_checkpoint_file(checkpoint)
    if osp.exists(output) and osp.samefile(checkpoint, output):
        raise ConfigError(f'{output} is the checkpoint to export from; name another file.')
    weights = student_weights(loaded, checkpoint)
    model = build_model(student_config(config))
    load_strictly(model, weights, checkpoint)
    with written_whole(output) as file:
        torch.save(dict(meta=exported_meta(loaded), state_dict=weights), file)
    return own_config(config, output)


def exported_meta(checkpoint: dict) -> dict:
    """What plain MMDetection needs in an exported checkpoint besides weights, as plain values.

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


def own_config(config: Config, output: str) -> str:
    """Path of a config that plain MMDetection builds the student from."""
    if config.model.type != Distiller.__name__:
        return config.filename
    source = DetectorSource.parse(config.model.student, 'model.student')
    if isinstance(source.config, str) and not source.overrides:
        return find_file(source.config)
    path = f'{osp.splitext(output)[0]}.py'
    write_atomically(path, student_config(config).pretty_text)
    return path
