"""What a training step gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from torch import Tensor


@dataclass
class Batch:
    """Images and ground truth of a training step.

    Attributes:
        images: Images ``(B, 3, H, W)`` as the detectors' layers take them.
        metas: MMDetection's description of every image.
        gt_boxes: Boxes of every image, ``(g_b, 4)`` as ``x1, y1, x2, y2`` in pixels of ``images``.
        gt_labels: Classes of every image's boxes, ``(g_b,)`` int64.
        native: All of it as MMDetection hands it to a detector.
    """

    images: Tensor
    metas: list[dict]
    gt_boxes: list[Tensor]
    gt_labels: list[Tensor]
    native: Any


def of_each_image(given: Union[Tensor, Sequence[Tensor]], count: int) -> list[Tensor]:
    """What every image has.

    Args:
        given: A tensor that each image gets a copy of, or a tensor for each image.
        count: Number of images.

    Example:
        >>> import torch
        >>> of_each_image(torch.ones(1), 2), of_each_image([torch.ones(1), torch.zeros(1)], 2)
        ([tensor([1.]), tensor([1.])], [tensor([1.]), tensor([0.])])
    """
    return [given.clone() for _ in range(count)] if isinstance(given, Tensor) else list(given)


def filled_boxes(boxes: Tensor, height: int, width: int) -> np.ndarray:
    """Masks that fill boxes, ``(n, height, width)`` uint8.

    Args:
        boxes: ``(n, 4)`` in pixels.
        height: Of the image, in pixels.
        width: Likewise.

    Example:
        >>> import torch
        >>> filled_boxes(torch.tensor([[1.0, 0.0, 3.0, 1.0]]), height=2, width=4).tolist()
        [[[0, 1, 1, 0], [0, 0, 0, 0]]]
    """
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    return masks


def mask_parts(masks: Any) -> dict[str, Any]:
    """Arguments that make MMDetection's masks of an image again."""
    return dict(masks=masks.masks, height=masks.height, width=masks.width)
