"""Take the student out of a training checkpoint, for plain MMDetection."""

from __future__ import annotations

import os

import torch
from mmcv import Config
from mmdet.models import build_detector
from torch import Tensor

from gkd.apis.config import student_config
from gkd.compat.checkpoint import load_checkpoint_file, load_strictly

STUDENT_PREFIX = 'student.'


def student_weights(checkpoint: dict) -> dict[str, Tensor]:
    """The student's weights under a plain detector's names.

    Args:
        checkpoint: A loaded checkpoint, of a distiller or of a plain detector.

    Returns:
        State dict of the student; a plain detector's is returned as it is.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    student = {name[len(STUDENT_PREFIX):]: tensor for name, tensor in weights.items()
               if name.startswith(STUDENT_PREFIX)}
    return student or weights


def export_student(config: Config, checkpoint: str, output: str) -> None:
    """Write a checkpoint that plain MMDetection loads strictly into the student's own config.

    Args:
        config: The distillation config.
        checkpoint: A checkpoint of its training.
        output: File to write; it appears whole or not at all.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not hold this config's student.
    """
    loaded = load_checkpoint_file(checkpoint)
    weights = student_weights(loaded)
    model = build_detector(student_config(config).model)
    load_strictly(model, weights, checkpoint)
    meta = {name: loaded['meta'][name] for name in ('CLASSES', 'epoch', 'iter', 'mmdet_version')
            if name in loaded.get('meta', {})}
    os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
    torch.save(dict(meta=meta, state_dict=weights), f'{output}.part')
    os.replace(f'{output}.part', output)
