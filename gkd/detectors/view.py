"""What a detector computes from blank images: its maps, and what it predicts from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn

from gkd.detectors.dense import class_layers, dense_head, predicted_maps, scores_apart
from gkd.detectors.modes import eval_mode
from gkd.detectors.roi_heads import classify
from gkd.detectors.step import recorded
from gkd.errors import ConfigError
from gkd.frameworks import BaseDetector, bbox2roi

# A multiple of every stride in use (NAS-FPN needs 128), small enough to cost little.
PROBE_SIZE = 256
# Batch normalisation of a map with a single cell needs two images.
PROBE_IMAGES = 2


@dataclass
class View:
    """What a detector computes from blank images in eval mode.

    Attributes:
        images: The images ``(B, C, S, S)``.
        maps: Its maps ``(B, C, H_l, W_l)``, as its head gets them.
        strides: Stride of every map in pixels.
        dense: Class scores and regressions of its dense head, level by level; None if it has no
            such head or predicts otherwise.
        boxes: A box of every image, ``(B, 5)`` as image, x1, y1, x2, y2 in pixels.
        rois: What its RoI head computes for these; None likewise.
        reads_classes: Whether the class layers of the dense head read every map once, in order.
        scores_apart: Whether its class scores do not depend on the layers that regress boxes.
    """

    images: Tensor
    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    dense: Optional[tuple[list[Tensor], ...]]
    boxes: Tensor
    rois: Optional[dict]
    reads_classes: bool
    scores_apart: bool


def image_size(detector: BaseDetector) -> int:
    """Height and width of the images to probe a detector with, in pixels."""
    return fixed_size(detector) or PROBE_SIZE


def fixed_size(detector: BaseDetector) -> Optional[int]:
    """Height and width in pixels of the only images that a detector takes; None if of any size.

    SSD's last maps exist only at the image size that SSD is made for.
    """
    generator = getattr(dense_head(detector), 'prior_generator', None)
    size = getattr(generator, 'input_size', None)
    return size and int(size)


@torch.no_grad()
def probe(detector: BaseDetector, role: str, size: Optional[int] = None) -> View:
    """Run a detector on blank images.

    Args:
        detector: The detector.
        role: ``'teacher'`` or ``'student'``, for messages.
        size: Height and width of the images in pixels, if not the detector's own.

    Raises:
        ConfigError: Its parts do not fit together.
    """
    head = dense_head(detector)
    size = size or image_size(detector)
    parameter = next(detector.parameters())
    images = parameter.new_zeros(PROBE_IMAGES, image_channels(detector.backbone), size, size)
    try:
        with eval_mode(detector):
            maps = tuple(detector.extract_feat(images))
            dense, reads_classes = watched_predictions(head, maps)
            apart = scores_apart(head, maps)
            boxes = bbox2roi([parameter.new_tensor([[0, 0, size / 2, size / 2]])] * PROBE_IMAGES)
            rois = classified_boxes(detector, maps, boxes)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f'the parts of {role} {type(detector).__name__} do not fit together: {error}. Check '
            f'the channels: `neck.in_channels` are the backbone\'s, the head\'s `in_channels` '
            f'the neck\'s `out_channels`.') from error
    strides = tuple(nominal_stride(size / level.shape[-1]) for level in maps)
    return View(images, maps, strides, dense, boxes, rois, reads_classes, apart)


def watched_predictions(head: Optional[nn.Module], maps: tuple[Tensor, ...]
                        ) -> tuple[Optional[tuple[list[Tensor], ...]], bool]:
    """What a dense head predicts, and whether its class layers read every map once, in order."""
    layers = class_layers(head)
    if layers is None:
        return predicted_maps(head, maps), False
    with recorded(layers[-1], 'forward') as read:
        dense = predicted_maps(head, maps)
    sizes = [call.result.shape[-2:] for call in read]
    return dense, dense is not None and sizes == [level.shape[-2:] for level in maps]


def image_channels(backbone: nn.Module) -> int:
    """Channels of the images that a backbone reads."""
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return 3
    # YOLOX first folds each square of 2 x 2 pixels into one cell.
    folded = type(getattr(backbone, 'stem', None)).__name__ == 'Focus'
    return first.in_channels // 4 if folded else first.in_channels


def nominal_stride(measured: float) -> int:
    """A map's stride: the nearest power of two if it is within 10 %, else as measured.

    Example:
        >>> [nominal_stride(300 / cells) for cells in (38, 10, 3, 1)]
        [8, 32, 100, 300]
    """
    power = 2 ** round(float(np.log2(measured)))
    return power if abs(measured / power - 1) < 0.1 else round(measured)


def classified_boxes(detector: BaseDetector, maps: tuple[Tensor, ...],
                     boxes: Tensor) -> Optional[dict]:
    """What a RoI head computes for boxes ``(k, 5)``; None if it cannot classify given boxes.

    Heads that keep features of their proposals (Sparse R-CNN) or need more than maps (HTC with
    semantic segmentation) cannot.
    """
    roi_head = getattr(detector, 'roi_head', None)
    if roi_head is None or not callable(getattr(roi_head, '_bbox_forward', None)):
        return None
    try:
        outputs = classify(roi_head, maps, boxes)
    except (RuntimeError, AssertionError):
        if isinstance(roi_head.bbox_head, nn.ModuleList):
            return None  # a cascade that needs more than maps
        raise
    except Exception:
        return None
    fits = isinstance(outputs, dict) and 'cls_score' in outputs
    return outputs if fits and len(outputs['cls_score']) == len(boxes) else None
