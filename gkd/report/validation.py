"""Evaluate saved detections, and find the images on which detectors differ most."""

from __future__ import annotations

import base64
import contextlib
import json
import os.path as osp
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional

import cv2
import mmcv
import numpy as np
import torch
from pycocotools.coco import COCO

from gkd.compat.coco import InspectedCOCO
from gkd.datasets.coco_eval import evaluate, metrics_of
from gkd.detectors.config_files import find_file
from gkd.detectors.entries import name_of
from gkd.frameworks import Config
from gkd.progress import silence
from gkd.report.detections import match
from gkd.report.runs import annotation_files

WIDTH = 640  # of embedded images, in pixels
# Data sets of JSON files that are not evaluated as COCO. One has no file of boxes; LVIS labels not
# every class in every image, so that what else is detected is no error.
OTHERS = ('CocoPanopticDataset', 'LVISDataset', 'LVISV05Dataset', 'LVISV1Dataset')


@dataclass
class Precision:
    """A detector's COCO metrics and its curves of precision over recall.

    Attributes:
        metrics: AP, and AP by IoU and size, as MMDetection names them; -1 without such objects.
        recall: Values of recall, ``(101,)``.
        curves: Precision at these values by IoU threshold, mean over classes, ``(101,)``.
    """

    metrics: dict[str, float]
    recall: np.ndarray
    curves: dict[str, np.ndarray]


@dataclass
class Picture:
    """An image and what every detector finds on it.

    Attributes:
        filename: Its name in the data set.
        width: In pixels of the data set.
        height: Likewise.
        uri: The image itself as a data URI.
        objects: Boxes of the ground truth, ``(x, y, width, height)``.
        found: For every detector its boxes with the highest scores, as many as there are objects;
            each has ``box``, ``right``, ``name`` and ``score``.
        missed: For every detector the objects that none of these boxes matches.
    """

    filename: str
    width: int
    height: int
    uri: str
    objects: list[list[float]]
    found: list[list[dict[str, Any]]]
    missed: list[list[list[float]]]

    def score(self, number: int) -> str:
        """How much a detector has found, in words."""
        right = sum(box['right'] for box in self.found[number])
        return f'{right} of {len(self.objects)} found'


class Validation:
    """The validation data of a config, if they are in COCO's format and in reach.

    Attributes:
        problem: Why they cannot be used; empty if they can.
    """

    def __init__(self, config: Config):
        self.config = config.data.get('val', {})
        files = annotation_files(self.config)
        named = files[0] if len(files) == 1 else None
        kind = name_of(self.config.get('type')) if isinstance(self.config, dict) else None
        is_coco = isinstance(self.config, dict) and isinstance(named, str) and \
            named.endswith('.json') and 'dataset' not in self.config and kind not in OTHERS
        root = (self.config.get('data_root') or '') if is_coco else ''
        self.folder = osp.join(root, self.config.get('img_prefix') or '') if is_coco else ''
        self.path = find_file(osp.join(root, named)) if is_coco else None
        self.problem = ''
        if kind in OTHERS:
            self.problem = f'The validation data are of {kind}, which is not evaluated as COCO.'
        elif not is_coco:
            self.problem = 'The validation data are not a single COCO file.'
        elif self.path is None:
            self.problem = (f'The annotations {named} are not in reach; rebuild the report in the '
                            f'folder that the training was started in.')

    @cached_property
    def coco(self) -> COCO:
        """The annotations."""
        with silence():
            return InspectedCOCO(self.path)

    @cached_property
    def categories(self) -> list[int]:
        """Ids of the classes that are detected."""
        classes = self.config.get('classes')
        return self.coco.getCatIds(catNms=list(classes) if classes else [])

    def precision(self, detections: list[dict]) -> Precision:
        """Evaluate COCO results.

        Args:
            detections: Each with ``image_id``, ``category_id``, ``bbox`` and ``score``.
        """
        evaluation = evaluate(self.coco, detections, self.categories)
        precision = evaluation.eval['precision'][..., 0, -1]  # (IoU, recall, class)
        known = precision[0, 0] > -1
        mean = precision[:, :, known].mean(axis=2) if known.any() else precision[..., 0] * 0
        curves = {'IoU 0.5': mean[0], 'IoU 0.75': mean[5],
                  'mean of IoU 0.5 to 0.95': mean.mean(axis=0)}
        return Precision(metrics_of(evaluation), evaluation.params.recThrs, curves)

    def pictures(self, detections: Sequence[list[dict]], most: int = 6) -> list[Picture]:
        """The images on which detectors differ most.

        From every detector, the boxes with the highest scores are taken, as many as the image has
        objects, because scores of different detectors cannot be compared. Detectors differ on an
        object if some, but not all, have found it; a single detector is shown where it misses
        most.

        Args:
            detections: COCO results of every detector.
            most: How many images to return.

        Returns:
            The images, most different first; those that cannot be read are left out.
        """
        by_image = [group(results) for results in detections]
        ranked = []
        for image in sorted(self.coco.imgs):
            objects = [o for o in self.coco.imgToAnns[image]
                       if not o.get('iscrowd') and o['category_id'] in self.categories]
            if objects:
                matches = [match_image(results.get(image, []), objects) for results in by_image]
                votes = np.sum([matched for *_, matched in matches], axis=0)
                differ = votes < len(matches) if len(matches) == 1 else (
                    (votes > 0) & (votes < len(matches)))
                ranked.append((-int(differ.sum()), image, objects, matches))
        ranked.sort(key=lambda entry: entry[:2])
        pictures = []
        for *_, image, objects, matches in ranked:
            if len(pictures) == most:
                break
            picture = self.picture(image, objects, matches)
            pictures += [picture] if picture else []
        return pictures

    def picture(self, image: int, objects: list[dict], matches: list[tuple]) -> Optional[Picture]:
        """An image with its boxes; None if it cannot be read."""
        info = self.coco.imgs[image]
        path = find_file(osp.join(self.folder, info['file_name']))
        pixels = mmcv.imread(path) if path else None
        if pixels is None:
            return None
        names = {number: category['name'] for number, category in self.coco.cats.items()}
        found = [[dict(box=result['bbox'], right=right, name=names.get(result['category_id'], '?'),
                       score=result['score']) for result, right in zip(results, rights)]
                 for results, rights, _ in matches]
        missed = [[o['bbox'] for o, hit in zip(objects, matched) if not hit]
                  for *_, matched in matches]
        return Picture(info['file_name'], pixels.shape[1], pixels.shape[0], data_uri(pixels),
                       [o['bbox'] for o in objects], found, missed)


def read_detections(path: str) -> Optional[list[dict]]:
    """COCO results of a file, None if there are none that can be read."""
    if not osp.isfile(path):
        return None
    with open(path, encoding='utf-8') as file, contextlib.suppress(ValueError):
        return json.load(file)
    return None


def group(detections: list[dict]) -> dict[int, list[dict]]:
    """COCO results by image, best scored first."""
    grouped = defaultdict(list)
    for detection in detections:
        grouped[detection['image_id']].append(detection)
    for results in grouped.values():
        results.sort(key=lambda result: -result['score'])
    return grouped


def match_image(results: list[dict],
                objects: list[dict]) -> tuple[list[dict], list[bool], list[bool]]:
    """Match an image's best detections to its objects, as many as there are.

    Returns:
        These detections, for each whether it is right, for every object whether it was found.

    Example:
        >>> tree = dict(bbox=[0, 0, 10, 10], category_id=1)
        >>> match_image([dict(tree, score=.9), dict(tree, score=.8)],
        ...             [tree, dict(tree, bbox=[50, 0, 10, 10])])[1:]
        ([True, False], [True, False])
    """
    results = results[:len(objects)]
    rows = [[*corners(result['bbox']), result['score'], result['category_id']]
            for result in results]
    right, matched = match(
        torch.tensor(rows, dtype=torch.float).reshape(-1, 6),
        torch.tensor([corners(o['bbox']) for o in objects], dtype=torch.float),
        torch.tensor([o['category_id'] for o in objects]))
    return results, right, matched


def corners(box: Sequence[float]) -> list[float]:
    """``x1, y1, x2, y2`` of a COCO box."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def data_uri(pixels: np.ndarray) -> str:
    """An image, made smaller if it is wide, as a JPEG in a data URI."""
    if pixels.shape[1] > WIDTH:
        pixels = mmcv.imrescale(pixels, (WIDTH, 10 * WIDTH))
    jpeg = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg.tobytes()).decode()
