"""Run a recipe for one step at full size, without its data and checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import os.path as osp
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from xml.etree import ElementTree

import cv2
import mmcv
import numpy as np
import torch
from mmcv import Config, ConfigDict
from mmcv.runner import HOOKS, Hook
from mmdet.datasets import DATASETS, XMLDataset
from mmdet.models import build_detector
from torch import nn

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.detectors.source import REPOSITORY, DetectorSource, drop_pretrained, sources_of
from gkd.distiller import Distiller
from gkd.errors import GKDError
from gkd.files import write_atomically, written_whole
from gkd.running.config import load_config, student_config
from gkd.running.console import without_details
from gkd.running.data import leaf_configs
from gkd.running.export import export_student
from gkd.running.test import test
from gkd.running.train import train
from gkd.work_dir import LATEST

IMAGE_SIZE = 256
LOSSES = 'losses.json'
# Of every synthetic image; both sides are long enough for prototypes.
BOXES = ((16, 16, 56, 60), (70, 20, 170, 90), (20, 100, 120, 240), (130, 110, 250, 250))
DETECTION_LOSSES = {'loss', 'loss_cls', 'loss_bbox', 'loss_centerness', 'loss_dfl',
                    'loss_rpn_cls', 'loss_rpn_bbox'}
# An untrained detector is sure of nothing: it shall report its few best guesses.
TEST_SETTINGS = {'score_thr': 0.0, 'nms_pre': 100, 'max_per_img': 20}


class RecipeError(GKDError):
    """A recipe ran, but not as it should."""


@HOOKS.register_module()
class LossRecorder(Hook):
    """Write the losses of the last step, which logs round, into the work dir."""

    def after_train_iter(self, runner) -> None:
        """Write them."""
        losses = {name: value for name, value in runner.outputs['log_vars'].items()
                  if name.startswith('loss')}
        write_atomically(osp.join(runner.work_dir, LOSSES), json.dumps(losses))


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


def recipes() -> list[str]:
    """Paths of all recipes for COCO and PASCAL VOC."""
    return sorted(path for folder in ('coco', 'voc')
                  for path in glob(osp.join(REPOSITORY, 'configs', folder, '**', '*.py'),
                                   recursive=True))


def check_recipe(path: str, folder: str) -> RecipeReport:
    """Train a recipe for one step, export its student and evaluate it.

    Only the images are made smaller. The detectors have their full size, and start from files in
    the format of the model zoo with random weights.

    Args:
        path: The config file.
        folder: Where to write. Checkpoints stay in it for further recipes.

    Returns:
        What happened.

    Raises:
        GKDError: Something did not work, or not as it should.
    """
    started = time.time()
    config = load_config(path)
    work_dir = osp.join(folder, 'work')
    shutil.rmtree(work_dir, ignore_errors=True)
    for source in sources_of(config.model):
        role = source.key.rpartition('.')[2]
        config.model[role].checkpoint = random_checkpoint(source, folder)
    drop_pretrained(config.model)
    use_synthetic_data(config, osp.join(folder, 'data'))
    config.runner.max_epochs = 1
    config.custom_hooks = [*(config.get('custom_hooks') or ()), dict(type=LossRecorder.__name__)]
    config.work_dir = work_dir
    train(config, resume='never', validate=False)

    latest = osp.join(work_dir, LATEST)
    losses = check_losses(config, work_dir)
    check_student(config, latest)
    exported = osp.join(work_dir, 'student.pth')
    export_student(load_config(path), latest, exported)
    own = student_config(config)
    for entry in nested(own.model.test_cfg):
        entry.update((key, value) for key, value in TEST_SETTINGS.items() if key in entry)
    metric = config.evaluation.metric
    results = osp.join(work_dir, 'results.pkl')
    metrics = test(own, exported, [metric] if isinstance(metric, str) else metric, results)
    detections = sum(len(boxes) for image in mmcv.load(results) for boxes in image)
    if not detections:
        raise RecipeError('the exported student detects nothing at any score.')
    shutil.rmtree(work_dir)
    return RecipeReport(losses, detections, metrics, time.time() - started)


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


def use_synthetic_data(config: Config, folder: str) -> None:
    """Let a config train on one batch of small synthetic images, and test on the same.

    The files lie under ``folder`` where the config looks for them under the current directory.

    Args:
        config: Changed in place.
        folder: Where to write.
    """
    for split in ('train', 'val', 'test'):
        for leaf in leaf_configs(config.data[split]):
            write_leaf(leaf, folder)
        for entry in nested(config.data[split]):
            if entry.get('type') == 'RepeatDataset':
                entry.times = 1
    for entry in nested(config.data):
        if 'img_scale' in entry:
            entry.img_scale = (IMAGE_SIZE, IMAGE_SIZE)
    for part in ('train', 'val', 'test'):
        config.data[f'{part}_dataloader'].update(workers_per_gpu=0)
    config.data.train_dataloader.samples_per_gpu = 2


def write_leaf(leaf: ConfigDict, folder: str) -> None:
    """Write the files that a data set's config names, and point the config to them."""
    lists = leaf.ann_file if isinstance(leaf.ann_file, list) else [leaf.ann_file]
    prefixes = leaf.img_prefix if isinstance(leaf.img_prefix, list) else [leaf.img_prefix]
    kind = DATASETS.get(leaf.type)
    classes = leaf.get('classes') or kind.CLASSES
    write = write_voc if issubclass(kind, XMLDataset) else write_coco
    here = [(osp.join(folder, names), osp.join(folder, prefix))
            for names, prefix in zip(lists, prefixes)]
    for number, (names, prefix) in enumerate(here):
        # Two images in all: a pair, or one from each year of PASCAL VOC.
        images = [f'{number}{position}' for position in range(2 // len(here))]
        os.makedirs(osp.dirname(names), exist_ok=True)
        os.makedirs(prefix, exist_ok=True)
        write(names, prefix, images, classes)
    both = [list(paths) for paths in zip(*here)]
    leaf.ann_file, leaf.img_prefix = (
        paths if isinstance(leaf.ann_file, list) else paths[0] for paths in both)


def write_coco(ann_file: str, prefix: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Write images and their annotations in COCO's format."""
    boxes = [(image, label, box) for image in range(len(names))
             for label, box in enumerate(BOXES)]
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
        for label, (x1, y1, x2, y2) in enumerate(BOXES):
            entry = add(root, 'object', name=classes[label], difficult=0)
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


def check_losses(config: Config, work_dir: str) -> dict[str, float]:
    """Losses of the training step.

    Raises:
        RecipeError: One is no finite number, or the teacher teaches nothing.
    """
    with open(osp.join(work_dir, LOSSES)) as file:
        losses = json.load(file)
    broken = [name for name, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise RecipeError(f'no finite numbers: {", ".join(broken)}')
    taught = [value for name, value in losses.items() if name not in DETECTION_LOSSES]
    if config.model.get('knowledge') and not (taught and all(value > 0 for value in taught)):
        raise RecipeError(f'nothing is taught: {losses}')
    return losses


def check_student(config: Config, path: str) -> None:
    """Raise RecipeError if a training step has moved no weight of a distiller's student."""
    if config.model.type != Distiller.__name__:
        return
    trained = load_checkpoint_file(path)['state_dict']
    before = load_checkpoint_file(config.model.student.checkpoint)['state_dict']
    if all(torch.equal(trained[f'student.{name}'], tensor) for name, tensor in before.items()):
        raise RecipeError('the training step has moved no weight of the student.')


def nested(entry: object) -> Iterator[ConfigDict]:
    """All dicts inside a config, at every depth."""
    if isinstance(entry, dict):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry:
        if isinstance(inner, (dict, list, tuple)):
            yield from nested(inner)
