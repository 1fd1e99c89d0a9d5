"""Patches of how MMDetection 3.x reads annotations, and evaluates detections."""

from __future__ import annotations

import functools

import mmdet.datasets
from mmdet.datasets.api_wrappers import COCO, COCOevalMP
from mmdet.evaluation.metrics import coco_metric, ov_coco_metric

from gkd.compat.coco import InOrderOfClasses, InspectedCOCO, OrderedCOCOeval
from gkd.watching import watched


def inspect_annotations() -> None:
    """Check all of a COCO file when it is read, by a data set or, once more, by the metric.

    Reason: as under mmdet 2.x (:func:`gkd.compat.coco.inspect_annotations`). What the metric
    writes itself, from a data set whose images have no names, is not looked at.
    For: mmdet 3.x and pycocotools 2.x.
    """
    for kind in vars(mmdet.datasets).values():
        if getattr(kind, 'COCOAPI', None) is COCO:
            kind.COCOAPI = InspectedCOCO
    initialise = coco_metric.CocoMetric.__init__

    @functools.wraps(initialise)
    def initialise_inspected(self, *args, **kwargs):
        with watched(coco_metric, 'COCO', lambda read, path: InspectedCOCO(path)):
            initialise(self, *args, **kwargs)

    coco_metric.CocoMetric.__init__ = initialise_inspected


def evaluate_classes_in_their_order() -> None:
    """Give each class its own AP, and take ``iou_thrs`` as a list.

    Reason: as under mmdet 2.x (:func:`gkd.compat.coco.evaluate_classes_in_their_order`).
    For: mmdet 3.x and pycocotools 2.x.
    """
    for module in (coco_metric, ov_coco_metric):
        module.COCOeval, module.COCOevalMP = OrderedCOCOeval, OrderedCOCOevalMP


class OrderedCOCOevalMP(InOrderOfClasses, COCOevalMP):
    """mmdet's evaluation in several processes."""
