"""COCO's average precision of saved detections, and the names of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gkd.progress import silence

# By the name that tables give it, what MMDetection calls it; in the order of COCOeval's `stats`.
METRICS = {'AP': 'bbox_mAP', 'AP50': 'bbox_mAP_50', 'AP75': 'bbox_mAP_75',
           'AP small': 'bbox_mAP_s', 'AP medium': 'bbox_mAP_m', 'AP large': 'bbox_mAP_l'}
# How LVIS's evaluation calls the same, and those at an IoU of 0.5 (PASCAL VOC, Open Images).
OTHER_NAMES = {
    'bbox_AP': 'bbox_mAP', 'bbox_AP50': 'bbox_mAP_50', 'bbox_AP75': 'bbox_mAP_75',
    'bbox_APs': 'bbox_mAP_s', 'bbox_APm': 'bbox_mAP_m', 'bbox_APl': 'bbox_mAP_l',
    'mAP': 'bbox_mAP', 'AP50': 'bbox_mAP_50'}
# Detections of an image that count, at most, as MMDetection sets it.
MAX_DETECTIONS = (100, 300, 1000)


def by_coco_names(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics, the average precisions among them by the names that COCO's evaluation has.

    Where COCO's own are there, too, these stay.

    Example:
        >>> by_coco_names({'mAP': 0.75, 'time': 1.0})
        {'bbox_mAP': 0.75, 'time': 1.0}
        >>> by_coco_names({'bbox_mAP': 0.5, 'mAP': 0.75})
        {'bbox_mAP': 0.5}
    """
    renamed = {OTHER_NAMES.get(name, name): value for name, value in metrics.items()}
    return {name: metrics.get(name, value) for name, value in renamed.items()}


def evaluate(coco: COCO, detections: Sequence[dict], categories: Optional[Sequence[int]] = None,
             images: Optional[Sequence[int]] = None) -> COCOeval:
    """Evaluate COCO results as MMDetection does.

    Args:
        coco: The annotations.
        detections: Each with ``image_id``, ``category_id``, ``bbox`` and ``score``.
        categories: Ids of the classes to evaluate; None for all.
        images: Ids of the images; None for all.

    Returns:
        The evaluation, accumulated and summarised.
    """
    with silence():
        evaluation = COCOeval(coco, load_results(coco, detections), 'bbox')
        if categories is not None:
            evaluation.params.catIds = list(categories)
        if images is not None:
            evaluation.params.imgIds = list(images)
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def metrics_of(evaluation: COCOeval) -> dict[str, float]:
    """AP, and AP by IoU and size, as MMDetection names them; -1 where there are no objects."""
    return dict(zip(METRICS.values(), map(float, evaluation.stats)))


def load_results(coco: COCO, detections: Sequence[dict]) -> COCO:
    """COCO results in the form in which COCOeval takes them."""
    # loadRes refuses an empty list, and adds to the dicts that it is given.
    return coco.loadRes([dict(found) for found in detections]) if detections else COCO()
