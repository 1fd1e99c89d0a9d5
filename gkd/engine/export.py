"""Take the student out of a training checkpoint, for plain MMDetection 3."""

from __future__ import annotations

from mmengine.config import Config

from gkd.commands.export import export, load_student
from gkd.detectors.source import own_file
from gkd.engine.config import build_model, detector_config, student_config
from gkd.frameworks import BaseDetector, build_detector


def load_detector(config: Config, checkpoint: str) -> BaseDetector:
    """Build a detector, or a distillation config's student, with its weights, in eval mode.

    Args:
        config: A plain detector's config or a distillation config.
        checkpoint: A checkpoint of a distiller or of a plain detector.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
    """
    model = build_detector(detector_config(config))
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
        ConfigError: ``output`` is the checkpoint itself, or a file is where the config would go.
    """
    return export(student_config(config), build_model, own_file(config), checkpoint, output)
