"""APs by degree of blur, occlusion and size, as the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pycocotools.coco import COCO

from gkd.datasets.degrees import DIGIT_SCENES_DEGREES, evaluate_by_degree


def degree_columns(coco: COCO) -> list[str]:
    """Names of the ranges of degrees, if all annotations carry them."""
    annotations = coco.dataset.get('annotations')
    if not annotations or not all(degree in annotation for annotation in annotations
                                  for degree in DIGIT_SCENES_DEGREES):
        return []
    return [degree_column(degree, low, high)
            for degree, ranges in DIGIT_SCENES_DEGREES.items() for low, high in ranges]


def degree_column(degree: str, low: float, high: float) -> str:
    """Name of a range.

    Example:
        >>> degree_column('size', 28, 48), degree_column('size', 48, math.inf)
        ('size 28 to 48', 'size from 48')
    """
    return f'{degree} from {low:g}' if high == math.inf else f'{degree} {low:g} to {high:g}'


def aps_by_degree(coco: COCO, detections: Sequence[dict]) -> dict[str, float]:
    """APs in percent by the name of their range; ranges without instances are left out.

    Args:
        coco: Annotations that carry degrees.
        detections: COCO results.
    """
    return {degree_column(found['degree'], found['low'], found['high']): 100 * found['AP']
            for found in evaluate_by_degree(coco, detections) if not math.isnan(found['AP'])}
