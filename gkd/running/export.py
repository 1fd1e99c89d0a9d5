"""Take the student out of a training checkpoint, for plain MMDetection."""

from __future__ import annotations

import os.path as osp

from mmcv import Config
from mmdet.models.detectors import BaseDetector

from gkd.commands.export import load_student, write_student
from gkd.detectors.source import DetectorSource
from gkd.distiller import Distiller
from gkd.files import write_atomically
from gkd.running.config import build_model, student_config


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
    load_student(model, checkpoint)
    model.eval()  # a statement of its own: that of some detectors returns nothing
    return model


def export_student(config: Config, checkpoint: str, output: str) -> str:
    """Write a checkpoint that plain MMDetection loads strictly into the student's own config.

    Args:
        config: The distillation config, or the student's own.
        checkpoint: A checkpoint of a distiller or of a plain detector.
        output: File to write; it appears whole or not at all.

    Returns:
        Path of the student's own config. Where the distillation config does not just name one, it
        is written beside ``output``.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not hold this config's student.
        ConfigError: ``output`` is the checkpoint itself.
    """
    write_student(build_model(student_config(config)), checkpoint, output)
    return own_config(config, output)


def own_config(config: Config, output: str) -> str:
    """Path of a config that plain MMDetection builds the student from."""
    if config.model.type != Distiller.__name__:
        return config.filename
    file = DetectorSource.parse(config.model.student, 'model.student').whole_config()
    if file is not None:
        return file
    path = f'{osp.splitext(output)[0]}.py'
    write_atomically(path, student_config(config).pretty_text)
    return path
