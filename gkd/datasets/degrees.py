"""COCO average precision of instances that are blurred, occluded or small to some degree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gkd.datasets.coco_eval import load_results
from gkd.errors import DataError
from gkd.progress import silence

# Of digit scenes: not at all, a little, much; sizes in three equally frequent ranges.
DIGIT_SCENES_DEGREES = dict(
    blur=((0, 0.3), (0.3, 1.5), (1.5, math.inf)),
    occlusion=((0, 0.05), (0.05, 0.3), (0.3, math.inf)),
    size=((60, math.inf), (38, 60), (0, 38)))


def evaluate_by_degree(
        coco: COCO, detections: Sequence[dict],
        degrees: Mapping[str, Sequence[tuple[float, float]]] = DIGIT_SCENES_DEGREES) -> list[dict]:
    """Average precision by degree: instances outside a range are neither missed nor wrong.

    What COCO does for AP small, medium and large with the area of a box, with any number that the
    annotations carry. A detection that matches no instance counts as false in every range (COCO
    can leave it out by its own area; a false detection has no degree of occlusion). Precision is
    therefore lower in ranges with fewer instances: compare detectors within a range, and beware of
    comparing ranges.

    Args:
        coco: Annotations with a number under the name of every degree.
        detections: COCO results, dicts with ``image_id``, ``category_id``, ``bbox`` and ``score``.
        degrees: Ranges ``low <= value < high`` by the name of the degree.

    Returns:
        For every range a dict with ``degree``, ``low``, ``high``, ``instances`` (their number),
        and ``AP``, ``AP50`` and ``AP75`` from 0 to 1, NaN if there are no instances.

    Raises:
        DataError: An annotation lacks a degree.
    """
    for annotation in coco.dataset['annotations']:
        missing = [degree for degree in degrees if degree not in annotation]
        if missing:
            raise DataError(f'annotation {annotation["id"]} of image {annotation["image_id"]} has '
                            f'no {" and no ".join(missing)}. Every annotation needs the degrees '
                            f'that are asked for: {", ".join(degrees)}.')
    with silence():
        found = load_results(coco, detections)
        return [dict(degree=degree, low=low, high=high,
                     **_DegreeEvaluation(coco, found, degree, low, high).average_precision())
                for degree, ranges in degrees.items() for low, high in ranges]


class _DegreeEvaluation(COCOeval):
    def __init__(self, coco, found, degree, low, high):
        super().__init__(coco, found, 'bbox')
        self.degree, self.low, self.high = degree, low, high
        self.params.areaRng, self.params.areaRngLbl = [[0, 1e10]], ['all']
        self.params.maxDets = [100]

    def _prepare(self):
        super()._prepare()  # sets `ignore` of every annotation anew
        self.instances = 0
        for instances in self._gts.values():
            for instance in instances:
                if not self.low <= instance[self.degree] < self.high:
                    instance['ignore'] = 1
                self.instances += not instance['ignore']

    def average_precision(self):
        self.evaluate()
        self.accumulate()
        precision = self.eval['precision']  # threshold, recall, class, area, number

        def mean(values):
            values = values[values > -1]  # -1: no instance of the class
            return float(values.mean()) if len(values) else math.nan

        return dict(instances=self.instances, AP=mean(precision), AP50=mean(precision[0]),
                    AP75=mean(precision[5]))
