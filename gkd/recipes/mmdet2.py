"""The check of recipes with MMDetection 2."""

from __future__ import annotations

import json
import os
import os.path as osp
import shutil
import time

import mmcv
from mmcv import Config, ConfigDict
from mmcv.runner import HOOKS, Hook
from mmdet.datasets import DATASETS, XMLDataset

from gkd.detectors.entries import nested
from gkd.files import write_atomically
from gkd.recipes import (
    IMAGE_SIZE,
    SCRATCH,
    RecipeError,
    RecipeReport,
    below,
    check_losses,
    check_student,
    recipes_in,
    report_all_guesses,
    use_random_checkpoints,
    write_coco,
    write_voc,
)
from gkd.running.config import load_config, student_config
from gkd.running.data import leaf_configs
from gkd.running.export import export_student
from gkd.running.test import test
from gkd.running.train import train
from gkd.work_dir import LATEST

__all__ = ['check_recipe', 'recipes']

LOSSES = 'losses.json'


@HOOKS.register_module()
class LossRecorder(Hook):
    """Write the losses of the last step, which logs round, into the work dir."""

    def after_train_iter(self, runner) -> None:
        """Write them."""
        losses = {name: value for name, value in runner.outputs['log_vars'].items()
                  if name.startswith('loss')}
        write_atomically(osp.join(runner.work_dir, LOSSES), json.dumps(losses))


def recipes() -> list[str]:
    """Paths of all recipes for COCO and PASCAL VOC."""
    return recipes_in('coco', 'voc')


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
    work_dir = osp.join(folder, SCRATCH, 'work')
    shutil.rmtree(work_dir, ignore_errors=True)
    use_random_checkpoints(config.model, folder)
    use_synthetic_data(config, osp.join(folder, SCRATCH, 'data'))
    config.runner['max_iters' if 'max_iters' in config.runner else 'max_epochs'] = 1
    config.custom_hooks = [*(config.get('custom_hooks') or ()), dict(type=LossRecorder.__name__)]
    config.work_dir = work_dir
    train(config, resume='never', validate=False)

    latest = osp.join(work_dir, LATEST)
    with open(osp.join(work_dir, LOSSES)) as file:
        losses = json.load(file)
    check_losses(losses, config.model)
    check_student(config.model, latest)
    exported = osp.join(work_dir, 'student.pth')
    export_student(load_config(path), latest, exported)
    own = student_config(config)
    report_all_guesses(own.model)
    metric = config.evaluation.metric
    results = osp.join(work_dir, 'results.pkl')
    metrics = test(own, exported, [metric] if isinstance(metric, str) else metric, results)
    detections = sum(len(boxes) for image in mmcv.load(results) for boxes in image)
    if not detections:
        raise RecipeError('the exported student detects nothing at any score.')
    shutil.rmtree(work_dir)
    return RecipeReport(losses, detections, metrics, time.time() - started)


def use_synthetic_data(config: Config, folder: str) -> None:
    """Let a config train on one batch of small synthetic images, and test on the same.

    The files lie under ``folder`` where the config looks for them; those of the user are not
    touched.

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
    several = isinstance(leaf.ann_file, list)
    lists = leaf.ann_file if several else [leaf.ann_file]
    prefixes = leaf.get('img_prefix') or ''
    prefixes = prefixes if isinstance(prefixes, list) else [prefixes] * len(lists)
    root = leaf.pop('data_root', None) or ''
    kind = DATASETS.get(leaf.type)
    classes = leaf.get('classes') or kind.CLASSES
    write = write_voc if issubclass(kind, XMLDataset) else write_coco
    here = [(below(folder, osp.join(root, names)), below(folder, osp.join(root, prefix)))
            for names, prefix in zip(lists, prefixes)]
    for number, (names, prefix) in enumerate(here):
        # Two images in all: a pair, or one from each year of PASCAL VOC.
        images = [f'{number}{position}' for position in range(2 // len(here))]
        os.makedirs(osp.dirname(names), exist_ok=True)
        os.makedirs(prefix, exist_ok=True)
        write(names, prefix, images, classes)
    both = [list(paths) for paths in zip(*here)]
    leaf.ann_file, leaf.img_prefix = (
        paths if several else paths[0] for paths in both)
