"""Detectors of MMDetection 2's zoo: which they are, a training step and a test of one."""

from __future__ import annotations

from torch import nn

from gkd.detectors.trial_step import probe_batch
from gkd.detectors.view import View
from gkd.distiller import Distiller
from gkd.frameworks import Batch, to_batch
from studies.zoo import PAIRS, SELF_PAIRS

__all__ = ['PAIRS', 'SELF_PAIRS', 'detections', 'losses', 'taught_batch', 'training_batch',
           'with_small_batches']


def with_small_batches(model: dict) -> None:
    """Let a detector that resizes its batches now and then do so after each, to small ones."""
    if model['type'] == 'YOLOX':
        model.update(random_size_interval=1, random_size_range=(5, 9), input_size=(256, 256))


def training_batch(student: nn.Module, view: View, num_classes: int) -> dict:
    """A training batch of noise, as a data loader gives it to a student."""
    return probe_batch(student, view, num_classes).native


def losses(model: nn.Module, batch: dict) -> dict:
    """Losses of a training step."""
    return model(return_loss=True, **batch)


def taught_batch(model: Distiller, batch: dict) -> Batch:
    """A batch as a distiller observes it."""
    return to_batch(**batch)


def detections(model: nn.Module, batch: dict) -> list:
    """Results of a test of a batch's first image."""
    further = {name: [value[:1]] for name, value in batch.items() if name == 'proposals'}
    return model(return_loss=False, rescale=True, img=[batch['img'][:1]],
                 img_metas=[batch['img_metas'][:1]], **further)
