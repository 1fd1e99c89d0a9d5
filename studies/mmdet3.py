"""Detectors of MMDetection 3's zoo: which they are, a training step and a test of one."""

from __future__ import annotations

import torch
from torch import nn

from gkd.detectors.trial_step import probe_batch
from gkd.detectors.view import PROBE_SIZE, View
from gkd.distiller import Distiller
from gkd.frameworks import Batch, image_settings, to_batch
from gkd.frameworks.mmdet3 import set_initial_counts
from studies.zoo_mmdet3 import PAIRS, SELF_PAIRS

__all__ = ['PAIRS', 'SELF_PAIRS', 'detections', 'losses', 'taught_batch', 'training_batch',
           'with_small_batches']


def with_small_batches(model: dict) -> None:
    """Let preprocessors that resize or pad a batch do so to small ones, after each batch."""
    for step in (model.get('data_preprocessor') or {}).get('batch_augments') or ():
        if step['type'] == 'BatchSyncRandomResize':
            step.update(random_size_range=(160, 288), interval=1)
        elif step['type'] == 'BatchFixedSizePad':
            step.update(size=(PROBE_SIZE, PROBE_SIZE))


def training_batch(student: nn.Module, view: View, num_classes: int) -> dict:
    """A training batch of noise, as a data loader gives it to a student's preprocessor."""
    images = pixels(student, view.images.shape)
    probed = probe_batch(student, view, num_classes)
    return dict(inputs=list(images), data_samples=probed.native['batch_data_samples'])


def pixels(student: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Images of noise, uint8, whose mean is 0 and deviation 1 after they have been normalised.

    Maps of untrained layers would overflow if their images had the range of pixels.
    """
    settings = image_settings(student)
    if 'mean' not in settings:  # the detector's layers take pixels
        return torch.randint(256, shape, dtype=torch.uint8)
    order = -1 if settings['bgr_to_rgb'] else 1
    mean, std = (torch.tensor(settings[name][::order]).reshape(-1, 1, 1)
                 for name in ('mean', 'std'))
    return (mean + std * torch.randn(shape)).round().clamp(0, 255).byte()


def preprocessed(model: nn.Module, batch: dict) -> dict:
    """What a detector's preprocessor makes of a training batch."""
    set_initial_counts()
    return model.data_preprocessor(batch, True)


def losses(model: nn.Module, batch: dict) -> dict:
    """Losses of a training step."""
    return model(**preprocessed(model, batch), mode='loss')


def taught_batch(model: Distiller, batch: dict) -> Batch:
    """A batch as a distiller observes it."""
    return to_batch(**preprocessed(model, batch))


def detections(model: nn.Module, batch: dict) -> list:
    """Results of a test of a batch's first image."""
    first = {name: values[:1] for name, values in batch.items()}
    tested = model(**model.data_preprocessor(first, False), mode='predict')
    return [sample for sample in tested
            if 'pred_instances' in sample or 'pred_panoptic_seg' in sample]
