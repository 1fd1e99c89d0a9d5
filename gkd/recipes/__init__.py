"""The check of recipes.

A recipe is run for one step at full size, without its data and checkpoints: on small synthetic
images, with random weights in the format of the model zoo.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import os.path as osp
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from xml.etree import ElementTree

import cv2
import numpy as np
import torch
from torch import nn

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.detectors.entries import nested
from gkd.detectors.source import DetectorSource, drop_pretrained, sources_of
from gkd.errors import GKDError
from gkd.files import written_whole
from gkd.frameworks import ConfigDict, build_detector
from gkd.progress import without_details
from gkd.repository import REPOSITORY

SCRATCH = 'check_recipes'  # what the check makes and removes; nobody else's `work` or `data`
IMAGE_SIZE = 256
# Of every synthetic image; both sides are long enough for prototypes.
BOXES = ((16, 16, 56, 60), (70, 20, 170, 90), (20, 100, 120, 240), (130, 110, 250, 250))
DETECTION_LOSSES = {'loss', 'loss_cls', 'loss_bbox', 'loss_centerness', 'loss_dfl',
                    'loss_rpn_cls', 'loss_rpn_bbox'}
# An untrained detector is sure of nothing: it shall report its few best guesses.
TEST_SETTINGS = {'score_thr': 0.0, 'nms_pre': 100, 'max_per_img': 20}


class RecipeError(GKDError):
    """A recipe ran, but not as it should."""


@dataclass(frozen=True)
class RecipeReport:
    """What a recipe did.

    Attributes:
        losses: Losses of its training step by name.
        detections: Boxes that the exported student detected in the test images.
        metrics: The metrics of these detections.
        seconds: Time it took.
    """

    losses: dict[str, float]
    detections: int
    metrics: dict[str, float]
    seconds: float

    @property
    def distillation(self) -> dict[str, float]:
        """The losses that a teacher causes."""
        return {name: value for name, value in self.losses.items()
                if name not in DETECTION_LOSSES}


def recipes_in(*folders: str) -> list[str]:
    """Paths of all configs in folders of ``configs/``."""
    return sorted(path for folder in folders
                  for path in glob(osp.join(REPOSITORY, 'configs', folder, '**', '*.py'),
                                   recursive=True)
                  if osp.basename(osp.dirname(path)) != '_base_')


def use_random_checkpoints(model: dict, folder: str) -> None:
    """Let detectors start from random checkpoints, and nothing from pretrained weights.

    Args:
        model: The ``model`` of a config, changed in place.
        folder: Where to write the checkpoints.
    """
    for source in sources_of(model):
        role = source.key.rpartition('.')[2]
        model[role].checkpoint = random_checkpoint(source, folder)
    drop_pretrained(model)


def random_checkpoint(source: DetectorSource, folder: str) -> str:
    """Write a detector's untrained weights as the model zoo would.

    Args:
        source: The detector.
        folder: Where to write; a file that is there is taken as it is.

    Returns:
        Path of the file. It is not named as the published one, whose hash it does not have.
    """
    of_what = hashlib.sha256(repr((source.config, source.overrides)).encode()).hexdigest()
    path = osp.join(folder, f'random-{of_what[:8]}.pth')
    if not osp.isfile(path):
        source = dataclasses.replace(source, checkpoint=source.checkpoint or path)
        with without_details():
            detector = build_detector(source.model_config())
            detector.init_weights()
        # An untrained head scores everything alike; between two of them nothing can be distilled.
        for name, parameter in detector.named_parameters():
            if 'cls' in name and parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
        # Published files hold no optimizer, and those of 2020 neither the versions of modules nor
        # today's file format.
        weights = OrderedDict(detector.state_dict())
        meta = dict(mmdet_version='2.0.0', epoch=24, iter=175896)
        with written_whole(path) as file:
            torch.save(dict(meta=meta, state_dict=weights), file,
                       _use_new_zipfile_serialization=False)
    return path


def report_all_guesses(model: ConfigDict) -> None:
    """Let a detector report its best guesses, however unsure it is.

    Args:
        model: Its ``model`` config, changed in place.
    """
    for entry in nested(model.test_cfg):
        entry.update({key: value for key, value in TEST_SETTINGS.items() if key in entry})


def below(folder: str, path: str) -> str:
    """A path that a config names, moved under a folder: one that is absolute or goes up, too.

    So that nothing is ever written where the config has its own data.

    Example:
        >>> below('tmp', 'data/a.json'), below('tmp', '/mine/a.json'), below('tmp', '../a.json')
        ('tmp/data/a.json', 'tmp/mine/a.json', 'tmp/a.json')
    """
    return osp.join(folder, osp.relpath(osp.join(osp.sep, path), osp.sep))


def write_coco(ann_file: str, prefix: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Write images and their annotations in COCO's format."""
    boxes = [(image, number % len(classes), box) for image in range(len(names))
             for number, box in enumerate(BOXES)]
    content = dict(
        images=[dict(id=image, file_name=f'{name}.jpg', width=IMAGE_SIZE, height=IMAGE_SIZE)
                for image, name in enumerate(names)],
        annotations=[dict(id=number + 1, image_id=image, category_id=label, iscrowd=0,
                          bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
                     for number, (image, label, (x1, y1, x2, y2)) in enumerate(boxes)],
        categories=[dict(id=label, name=name) for label, name in enumerate(classes)])
    with open(ann_file, 'w', encoding='utf-8') as file:
        json.dump(content, file)
    for name in names:
        draw(osp.join(prefix, f'{name}.jpg'))


def write_voc(ann_file: str, prefix: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Write images and their annotations in PASCAL VOC's format."""
    with open(ann_file, 'w', encoding='utf-8') as file:
        file.writelines(f'{name}\n' for name in names)
    for folder in ('Annotations', 'JPEGImages'):
        os.makedirs(osp.join(prefix, folder), exist_ok=True)
    for name in names:
        root = ElementTree.Element('annotation')
        add(root, 'size', width=IMAGE_SIZE, height=IMAGE_SIZE, depth=3)
        for number, (x1, y1, x2, y2) in enumerate(BOXES):
            entry = add(root, 'object', name=classes[number % len(classes)], difficult=0)
            add(entry, 'bndbox', xmin=x1, ymin=y1, xmax=x2, ymax=y2)
        ElementTree.ElementTree(root).write(osp.join(prefix, 'Annotations', f'{name}.xml'))
        draw(osp.join(prefix, 'JPEGImages', f'{name}.jpg'))


def add(parent: ElementTree.Element, tag: str, **texts) -> ElementTree.Element:
    """Add an XML element that holds other elements with texts."""
    element = ElementTree.SubElement(parent, tag)
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)
    return element


def draw(path: str) -> None:
    """Draw a noisy image with a rectangle at every box."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(90, 160, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(BOXES):
        pixels[y1:y2, x1:x2] //= number + 2
    cv2.imwrite(path, pixels)


def check_losses(losses: dict[str, float], model: dict) -> None:
    """Check the losses of the training step.

    Args:
        losses: By name.
        model: The ``model`` that was trained.

    Raises:
        RecipeError: One is no finite number, or the teacher teaches nothing.
    """
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise RecipeError(f'no finite numbers: {", ".join(broken)}')
    taught = [value for name, value in losses.items() if name not in DETECTION_LOSSES]
    if model.get('knowledge') and not (taught and all(value > 0 for value in taught)):
        raise RecipeError(f'nothing is taught: {losses}')


def check_student(model: dict, path: str) -> None:
    """Raise RecipeError if a training step has moved no weight of a distiller's student.

    Args:
        model: The ``model`` that was trained; only a distiller is looked at.
        path: The checkpoint of the training.
    """
    if 'student' not in model:
        return
    trained = load_checkpoint_file(path)['state_dict']
    before = load_checkpoint_file(model['student'].checkpoint)['state_dict']
    if all(torch.equal(trained[f'student.{name}'], tensor) for name, tensor in before.items()):
        raise RecipeError('the training step has moved no weight of the student.')
