"""Mends of how annotations and proposals are read, and detections evaluated."""

from __future__ import annotations

import functools

import mmdet.datasets.coco
import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval

from gkd.datasets.coco_json import load_coco
from gkd.datasets.inspection import Finding
from gkd.errors import DataError
from gkd.watching import watched


def look_at_annotations() -> None:
    """Check all of a COCO file when it is read, and complete harmless omissions.

    Reason: pycocotools and mmdet read most fields image by image, in the middle of a run, and fail
    there with a bare ``KeyError``, or leave boxes out without a word.
    For: mmdet 2.x and pycocotools 2.x.
    """
    mmdet.datasets.coco.COCO = InspectedCOCO


def look_at_annotations_with_mmdet3() -> None:
    """The same, for data sets and for the metric, which reads the file once more.

    What the metric writes itself, from a data set whose images have no names, is not looked at.
    For: mmdet 3.x and pycocotools 2.x.
    """
    from mmdet.evaluation.metrics import coco_metric

    for kind in vars(mmdet.datasets).values():
        if getattr(kind, 'COCOAPI', None) is COCO:
            kind.COCOAPI = InspectedCOCO
    initialise = coco_metric.CocoMetric.__init__

    @functools.wraps(initialise)
    def initialise_inspected(self, *args, **kwargs):
        with watched(coco_metric, 'COCO', lambda read, path: InspectedCOCO(path)):
            initialise(self, *args, **kwargs)

    coco_metric.CocoMetric.__init__ = initialise_inspected


def evaluate_any_thresholds() -> None:
    """Let ``evaluation.iou_thrs`` be a list, as MMDetection documents it.

    Reason: pycocotools searches the thresholds as an array; numpy 2 refuses that for a list.
    For: mmdet 2.x with numpy 2.
    """
    mmdet.datasets.coco.COCOeval = ArrayCOCOeval


def count_proposals() -> None:
    """Refuse proposals of another number of images than a data set has.

    Reason: they are matched by their position. If there are too many, images get those of others
    without a word; if there are too few, reading them fails with a bare ``IndexError``.
    For: mmdet 2.x.
    """
    load = mmdet.datasets.CustomDataset.load_proposals

    @functools.wraps(load)
    def load_and_count(self, proposal_file):
        proposals = load(self, proposal_file)
        if len(proposals) != len(self.data_infos):
            raise DataError(f'proposal_file = {proposal_file!r} holds proposals of '
                            f'{len(proposals)} images, {self.ann_file} has '
                            f'{len(self.data_infos)}.')
        return proposals

    mmdet.datasets.CustomDataset.load_proposals = load_and_count


class ArrayCOCOeval(COCOeval):
    """pycocotools' evaluation, with the thresholds as an array."""

    def evaluate(self):
        """Match detections and ground truth."""
        self.params.iouThrs = np.asarray(self.params.iouThrs)
        super().evaluate()


class InspectedCOCO(COCO):
    """pycocotools' interface to a COCO file that was looked at.

    Args:
        annotation_file: COCO JSON; None makes an empty one.

    Attributes:
        findings: What was found in it.

    Raises:
        DataError: An entry cannot be used.
    """

    def __init__(self, annotation_file=None):
        super().__init__()
        self.findings: list[Finding] = []
        if annotation_file is not None:
            inspection = load_coco(annotation_file)
            self.dataset, self.findings = inspection.content, inspection.findings
            self.createIndex()
            self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs
