"""Patches of how annotations are read, and detections evaluated."""

from __future__ import annotations

import functools

import mmdet.datasets.api_wrappers
import mmdet.datasets.coco
import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval

from gkd.datasets.coco_json import load_coco
from gkd.datasets.inspection import Finding
from gkd.errors import DataError


def inspect_annotations() -> None:
    """Check all of a COCO file when it is read, and complete harmless omissions.

    Reason: pycocotools and mmdet read most fields image by image, in the middle of a run, and fail
    there with a bare ``KeyError``, or leave boxes out without a word.
    For: mmdet 2.x and pycocotools 2.x.
    """
    mmdet.datasets.coco.COCO = InspectedCOCO


def evaluate_classes_in_their_order() -> None:
    """Give each class its own AP, and take ``iou_thrs`` as a list, as MMDetection documents it.

    Reason: pycocotools sorts the ids of categories, MMDetection reads its results in the order of
    the file: with ``classwise``, AP stood beside the wrong class where a file's ids do not
    ascend. pycocotools also searches the thresholds as an array; numpy 2 refuses that for a list.
    For: mmdet 2.x and pycocotools 2.x.
    """
    mmdet.datasets.coco.COCOeval = OrderedCOCOeval


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


class InOrderOfClasses:
    """What makes results of pycocotools' evaluation be in the order of ``params.catIds``."""

    def evaluate(self):
        """Match detections and ground truth."""
        self.given = self.params.catIds
        self.params.iouThrs = np.asarray(self.params.iouThrs)
        super().evaluate()

    def accumulate(self, p=None):
        """Compute precision and recall."""
        super().accumulate(p)
        if self.params.useCats:
            order = np.searchsorted(self.params.catIds, self.given)
            # (threshold, recall, class, area, detections), recall without the second.
            for name, axis in (('precision', 2), ('scores', 2), ('recall', 1)):
                self.eval[name] = self.eval[name].take(order, axis)


class OrderedCOCOeval(InOrderOfClasses, COCOeval):
    """pycocotools' evaluation."""


class InspectedCOCO(COCO):
    """pycocotools' interface to a COCO file that was inspected.

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
