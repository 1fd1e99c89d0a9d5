"""The check of recipes with MMDetection 3."""

from __future__ import annotations

import os
import os.path as osp
import shutil
import time
from typing import Any

from mmdet.datasets.xml_style import XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

from gkd.detectors.entries import nested
from gkd.engine.config import detector_config, load_config
from gkd.engine.export import export_student
from gkd.engine.runner import Runner
from gkd.frameworks.mmdet3 import leaf_configs
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
from gkd.work_dir import checkpoints

__all__ = ['check_recipe', 'recipes']

PARTS = ('train', 'val', 'test')
# Settings of pipelines that are the size of an image, or a list of sizes.
SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size')


class LossRecorder(Hook):
    """Keep the losses of the last step."""

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Keep them."""
        self.losses = {name: float(value.detach()) for name, value in outputs.items()
                       if name.startswith('loss')}


class DetectionCounter(BaseMetric):
    """Count the boxes that are detected."""

    default_prefix = 'all'

    def process(self, data_batch: Any, data_samples: list[dict]) -> None:
        """Count those of a batch."""
        self.results += [len(sample['pred_instances']['bboxes']) for sample in data_samples]

    def compute_metrics(self, results: list[int]) -> dict[str, int]:
        """Their number in all images."""
        return dict(detections=sum(results))


def recipes() -> list[str]:
    """Paths of all configs for MMDetection 3."""
    return recipes_in('mmdet3')


def check_recipe(path: str, folder: str) -> RecipeReport:
    """Train a recipe for one step, export its student and evaluate it.

    Only the images are made smaller. The detectors have their full size, and start from files in
    the format of the model zoo with random weights. A detector that is trained alone is evaluated
    as it is.

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
    config.work_dir = work_dir
    losses = take_step(config)
    check_losses(losses, config.model)
    trained, = checkpoints(work_dir)
    check_student(config.model, trained)
    if 'student' in config.model:
        exported = osp.join(work_dir, 'student.pth')
        export_student(load_config(path), trained, exported)
        trained = exported
    metrics = evaluate(config, trained)
    detections = metrics.pop('all/detections')
    if not detections:
        raise RecipeError('the exported student detects nothing at any score.')
    shutil.rmtree(work_dir)
    return RecipeReport(losses, detections, metrics, time.time() - started)


def take_step(config: Config) -> dict[str, float]:
    """Train for an epoch, or a step, without evaluation; returns the losses of the last step."""
    config = Config(config.to_dict(), filename=config.filename)
    config.train_cfg['max_iters' if 'max_iters' in config.train_cfg else 'max_epochs'] = 1
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    # A report has nothing to show yet, and takes a process of its own.
    config.custom_hooks = [hook for hook in config.get('custom_hooks') or ()
                           if hook['type'] != 'ReportHook']
    runner = Runner.with_checked_data(config, 'train')
    recorder = LossRecorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder.losses


def evaluate(config: Config, checkpoint: str) -> dict[str, float]:
    """Measure and count what a detector finds in the test data."""
    config = Config(config.to_dict(), filename=config.filename)
    config.model = detector_config(config)
    report_all_guesses(config.model)
    runner = Runner.with_checked_data(config, 'test')
    runner.test_evaluator.metrics.append(DetectionCounter())
    runner.load_detector(checkpoint)
    return runner.test()


def use_synthetic_data(config: Config, folder: str) -> None:
    """Let a config train on one batch of small synthetic images, and test on the same.

    The files lie under ``folder`` where the config looks for them; those of the user are not
    touched.

    Args:
        config: Changed in place.
        folder: Where to write.
    """
    for part in PARTS:
        loader = config.get(f'{part}_dataloader')
        if not loader:
            continue
        leaves = leaf_configs(loader.dataset).values()
        for number, leaf in enumerate(leaves):
            # Two images in all: a pair, or one from each year of PASCAL VOC.
            write_leaf(leaf, folder, [f'{number}{position}' for position in
                                      range(max(1, 2 // len(leaves)))])
        for entry in nested(loader):
            if entry.get('type') == 'RepeatDataset':
                entry.times = 1
            entry.update({name: smaller(entry[name]) for name in SIZES
                          if isinstance(entry.get(name), (list, tuple))})
        loader.update(num_workers=0, persistent_workers=False)
        for entry in nested([config.get(f'{part}_evaluator') or {}]):
            if entry.get('ann_file'):
                entry.ann_file = below(folder, entry.ann_file)
    config.train_dataloader.batch_size = 2


def smaller(size: Any) -> Any:
    """The size of the synthetic images for a size, and a list of it for a list of sizes.

    Example:
        >>> smaller((1333, 800)), smaller([(1333, 640), (1333, 800)])
        ((256, 256), [(256, 256), (256, 256)])
    """
    if isinstance(size[0], (list, tuple)):
        return [smaller(one) for one in size]
    return (IMAGE_SIZE, IMAGE_SIZE)


def write_leaf(leaf: ConfigDict, folder: str, names: list[str]) -> None:
    """Write the files that a data set's config names, and point the config to them.

    Args:
        leaf: Config of a data set without wrappers.
        folder: Where to write.
        names: Names of the images.
    """
    kind = DATASETS.get(leaf.type)
    classes = (leaf.get('metainfo') or kind.METAINFO)['classes']
    root = leaf.get('data_root') or ''
    leaf.ann_file = below(folder, osp.join(root, leaf.ann_file))
    leaf.data_prefix = {name: below(folder, osp.join(root, prefix))
                        for name, prefix in leaf.data_prefix.items()}
    leaf.data_root = ''
    prefix = next(iter(leaf.data_prefix.values()))
    os.makedirs(osp.dirname(leaf.ann_file), exist_ok=True)
    os.makedirs(prefix, exist_ok=True)
    write = write_voc if issubclass(kind, XMLDataset) else write_coco
    write(leaf.ann_file, prefix, names, classes)
