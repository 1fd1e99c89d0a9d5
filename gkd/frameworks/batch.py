"""What a training step gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

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


def mask_parts(masks: Any) -> dict[str, Any]:
    """Arguments that make MMDetection's masks of an image again."""
    return dict(masks=masks.masks, height=masks.height, width=masks.width)
