"""MMDetection 3.x, on MMEngine."""

from __future__ import annotations

import copy
import logging
import os.path as osp
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from mmcv.cnn import ContextBlock, NonLocal2d, fuse_conv_bn
from mmdet.datasets import VOCDataset
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.models.backbones.efficientnet import EfficientNet
from mmdet.models.detectors import RPN, BaseDetector
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_overlaps
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from gkd.errors import ConfigError
from gkd.frameworks.alike import (
    MMDET_SCOPE,
    description,
    mmdet_configs,
    placement,
    require_told,
    source_of,
)
from gkd.frameworks.batch import Batch, filled_boxes, mask_parts, of_each_image

__all__ = [
    'BACKBONES', 'BATCH_PARTS', 'BATCH_SIZE_SETTING', 'BESIDE_MODEL', 'CLASSES_SETTING',
    'DETECTORS', 'HOOKS', 'IMAGES_SETTING', 'KEYS_READ', 'LOSSES_METHOD', 'MMDET_SCOPE', 'PACKING',
    'RPN', 'SAMPLE_PARTS', 'TOP_LEVEL', 'VOC_CLASSES', 'WORKERS_SETTING', 'BaseDetector', 'Batch',
    'Config', 'ConfigDict', 'ContextBlock', 'Dataset', 'DeltaXYWHBBoxCoder', 'DetectorShell',
    'EfficientNet', 'Hook', 'NonLocal2d', 'UntimedHook', 'anchor_inside_flags', 'annotation',
    'bbox2roi', 'bbox_overlaps', 'build_dataset', 'build_detector', 'classes_of', 'description',
    'epochs_in_all', 'fuse_conv_bn', 'get_dist_info', 'image_info', 'image_settings', 'logger',
    'mmdet_configs', 'network_input', 'positive_boxes', 'prototype_datasets',
    'revert_sync_batchnorm', 'sampled_boxes', 'source_of', 'student_losses', 'synthetic_batch',
    'test_view', 'to_batch',
]

Dataset = BaseDetDataset
BACKBONES = DETECTORS = MODELS
VOC_CLASSES = VOCDataset.METAINFO['classes']
# Settings of a detector that a config may keep beside its `model`. `train_cfg` and `test_cfg` are
# the loops' there.
BESIDE_MODEL = ('data_preprocessor',)
# Images of a step for each GPU, and processes that load them, for messages.
BATCH_SIZE_SETTING = 'train_dataloader.batch_size'
WORKERS_SETTING = 'train_dataloader.num_workers'
# Settings of a data set, for messages.
CLASSES_SETTING = 'metainfo.classes'
IMAGES_SETTING = 'data_prefix.img'
# What a pipeline makes of an image, and by which step, for messages.
SAMPLE_PARTS = ('inputs', 'data_samples')
PACKING = 'PackDetInputs, whose `meta_keys` name what detectors are told of an image'
# Steps after which boxes are where `scale_factor` says.
NOT_MOVING = ('LoadImageFromFile', 'LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals',
              'Resize', 'FixScaleResize', 'RandomResize', 'RandomChoiceResize', 'Pad',
              'PackDetInputs')
# A detector's method that returns the losses of a training step.
LOSSES_METHOD = 'loss'
# What is read at the top of a config; all else there is a variable of the file.
TOP_LEVEL = frozenset((
    'activation_checkpointing', 'auto_scale_lr', 'compile', 'cpu_channels_last',
    'custom_hooks', 'custom_imports', 'data_preprocessor', 'default_hooks', 'default_scope',
    'efficient_conv_bn_eval', 'env_cfg', 'experiment_name', 'find_unused_parameters',
    'launcher', 'load_from', 'log_level', 'log_processor', 'methods', 'model',
    'model_wrapper_cfg', 'optim_wrapper', 'param_scheduler', 'randomness', 'resume',
    'runner_type', 'sync_bn', 'test_cfg', 'test_dataloader', 'test_evaluator', 'train_cfg',
    'train_dataloader', 'tta_model', 'tta_pipeline', 'val_cfg', 'val_dataloader',
    'val_evaluator', 'variants', 'visualizer', 'work_dir',
))
# Of which settings there only these keys are read; those of the others go to a class or function.
KEYS_READ = {
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
}
# What a distillation counts in epochs, for messages.
DECAY = 'the decay of distillation is'


class UntimedHook(Hook):
    """A hook whose work before an epoch does not count as waiting for data.

    It comes before MMEngine's timer, whose seconds make `data_time` and the time left in the log.
    """

    priority = 'ABOVE_NORMAL'


def element_parts(element: BaseDataElement) -> dict[str, Any]:
    """Arguments that make a data element again."""
    return dict(metainfo=dict(element.metainfo_items()), **dict(element.items()))


# What a batch holds besides tensors and plain Python, by type: the arguments to make it again.
BATCH_PARTS = {BitmapMasks: mask_parts, PolygonMasks: mask_parts, DetDataSample: element_parts,
               InstanceData: element_parts, PixelData: element_parts}


def logger() -> logging.Logger:
    """The runner's logger, or one of MMEngine's where there is no runner."""
    return MMLogger.get_current_instance()


def build_detector(config: dict) -> BaseDetector:
    """Build a detector; its parts are looked up in MMDetection, inside of a runner or not.

    The config stays as it is. Some parts write into theirs: DETR's head a tensor, which no second
    head is built from and no config file can hold.
    """
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(copy.deepcopy(config))


def build_dataset(config: dict) -> Dataset:
    """Build a data set, its annotations read."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config)
    dataset.full_init()
    return dataset


class DetectorShell(BaseDetector):
    """The methods that MMDetection calls on a detector; the one in ``student`` answers them."""

    def adopt(self, student: BaseDetector) -> None:
        """Take over what belongs to a whole detector: how images are normalised and padded."""
        self.data_preprocessor = student.data_preprocessor

    def losses(self, batch: Batch) -> dict[str, Any]:
        """Losses of a training step; a subclass defines them."""
        raise NotImplementedError

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Any]:
        """Losses of a training step, from what the data preprocessor makes."""
        return self.losses(to_batch(batch_inputs, batch_data_samples))

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """FPN maps of the student."""
        return self.student.extract_feat(batch_inputs)

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, **kwargs) -> list:
        """Detections of the student, in MMDetection's format."""
        return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Optional[list] = None) -> tuple:
        return self.student._forward(batch_inputs, batch_data_samples)


def to_batch(inputs: Tensor, data_samples: list) -> Batch:
    """A batch from the arguments of a detector's ``loss``."""
    instances = [sample.gt_instances for sample in data_samples]
    return Batch(inputs, [sample.metainfo for sample in data_samples],
                 [image.bboxes for image in instances], [image.labels for image in instances],
                 dict(batch_inputs=inputs, batch_data_samples=data_samples))


def synthetic_batch(images: Tensor, boxes: Union[Tensor, Sequence[Tensor]],
                    labels: Union[Tensor, Sequence[Tensor]],
                    gt_masks: bool = False,
                    gt_semantic_seg: Optional[Tensor] = None,
                    proposals: Optional[Tensor] = None,
                    size: Optional[tuple[int, int]] = None,
                    pairwise_masks: Optional[Tensor] = None,
                    text: Optional[tuple[str, ...]] = None) -> Batch:
    """A training batch of given images and ground truth.

    Args:
        images: ``(B, C, H, W)``.
        boxes: ``(n, 4)`` in pixels, of every image, or a list with those of each.
        labels: ``(n,)`` int64, likewise.
        gt_masks: Whether boxes have masks, which fill them.
        gt_semantic_seg: Classes of the cells of a map, ``(h, w)`` int64.
        proposals: ``(m, 4)`` in pixels.
        size: Height and width of the images without their padding; by default they have none.
        pairwise_masks: Which neighbours of a cell have its colour, the same for every box,
            ``(neighbours, h, w)`` of 0 and 1; BoxInst's preprocessor makes them of the images.
        text: What Grounding DINO and GLIP call each class.
    """
    height, width = images.shape[-2:]
    samples = []
    for own_boxes, own_labels in zip(of_each_image(boxes, len(images)),
                                     of_each_image(labels, len(images))):
        sample = DetDataSample(metainfo=dict(
            img_shape=size or (height, width), ori_shape=(height, width),
            pad_shape=(height, width), batch_input_shape=(height, width), scale_factor=(1.0, 1.0),
            flip=False, img_path='', border=np.array([0, height, 0, width])))
        if text is not None:
            sample.set_metainfo(dict(text=text, custom_entities=True))
        sample.gt_instances = InstanceData(bboxes=own_boxes, labels=own_labels)
        sample.ignored_instances = InstanceData(bboxes=own_boxes[:0].clone(),
                                                labels=own_labels[:0].clone())
        if gt_masks:
            sample.gt_instances.masks = BitmapMasks(filled_boxes(own_boxes, height, width),
                                                    height, width)
        if pairwise_masks is not None:
            sample.gt_instances.pairwise_masks = pairwise_masks.expand(len(own_boxes), -1, -1, -1)
        if gt_semantic_seg is not None:
            sample.gt_sem_seg = PixelData(sem_seg=gt_semantic_seg[None].clone())
        if proposals is not None:
            sample.proposals = InstanceData(bboxes=proposals.clone(),
                                            scores=proposals.new_ones(len(proposals)))
        samples.append(sample)
    return to_batch(images, samples)


def student_losses(student: BaseDetector, batch: Batch) -> dict[str, Any]:
    """The detection losses of a batch."""
    set_initial_counts()
    return student.loss(**batch.native)


def set_initial_counts() -> None:
    """Let parts that ask MMEngine for the epoch or the step know that a training starts.

    A runner sets them. Where there is none, or where it has not started yet, TOOD's head and
    YOLOX's preprocessor would not run.
    """
    hub = MessageHub.get_current_instance()
    for name in ('epoch', 'iter'):
        if hub.get_info(name) is None:
            hub.update_info(name, 0)


def positive_boxes(sampled: Any) -> Tensor:
    """Positives of a ``SamplingResult``."""
    return sampled.pos_priors


def sampled_boxes(sampled: Any) -> Tensor:
    """All boxes of a ``SamplingResult``, positives first."""
    return sampled.priors


@torch.no_grad()
def network_input(detector: BaseDetector, images: Tensor,
                  sizes: Optional[Sequence[tuple[int, int]]] = None) -> Tensor:
    """Images of a test pipeline as the detector's layers take them: normalised and padded.

    Each detector has its own preprocessor for that, which pads images itself: ``sizes`` is not
    needed.
    """
    preprocessor = detector.data_preprocessor.to(images.device)
    return preprocessor(dict(inputs=list(images)), False)['inputs']


def image_settings(detector: BaseDetector) -> Optional[dict]:
    """How a detector normalises and pads images, by the names of its preprocessor's config.

    A preprocessor that only moves a batch to the device leaves images as they are.
    """
    preprocessor = detector.data_preprocessor
    settings = dict(bgr_to_rgb=getattr(preprocessor, '_channel_conversion', False),
                    pad_value=getattr(preprocessor, 'pad_value', 0))
    if getattr(preprocessor, '_enable_normalize', False):
        settings.update(mean=preprocessor.mean.flatten().tolist(),
                        std=preprocessor.std.flatten().tolist())
    return settings


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """Names of a data set's classes."""
    return tuple(dataset.metainfo['classes'])


def image_info(dataset: Dataset, index: int) -> dict[str, Any]:
    """An image's ``folder``, its ``filename`` within it, its ``width`` and ``height``."""
    info = dataset.get_data_info(index)
    folder = dataset.data_prefix.get('img', '')
    return dict(folder=folder, filename=osp.relpath(info['img_path'], folder or '.'),
                width=info['width'], height=info['height'])


def annotation(dataset: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``(n, 4)`` in pixels and labels ``(n,)`` of an image; crowds are left out."""
    instances = [instance for instance in dataset.get_data_info(index)['instances']
                 if not instance['ignore_flag']]
    boxes = np.array([instance['bbox'] for instance in instances], np.float32).reshape(-1, 4)
    return boxes, np.array([instance['bbox_label'] for instance in instances], np.int64)


def test_view(dataset: Dataset, index: int
              ) -> tuple[Tensor, np.ndarray, np.ndarray, tuple[int, int]]:
    """An image ``(3, H, W)`` as the test pipeline makes it.

    Returns:
        The image, the factors of its boxes ``(4,)``, and its :func:`placement`.
    """
    data = dataset.prepare_data(index)
    known = data['data_samples'].metainfo
    # A pipeline that resizes nothing has no factor to tell; CornerNet's pads instead.
    if 'border' in known or known.get('ori_shape', 0) == known.get('img_shape'):
        known.setdefault('scale_factor', (1.0, 1.0))
    require_told(known, dataset)
    return data['inputs'], np.tile(np.float32(known['scale_factor']), 2), *placement(known)


def epochs_in_all(runner: Any) -> float:
    """Epochs of a whole training; one that counts iterations may end inside an epoch.

    Raises:
        ConfigError: All iterations are one epoch, as in MMEngine's ``IterBasedTrainLoop``.
    """
    require_epochs(runner.train_loop, DECAY)
    return runner.max_iters / len(runner.train_dataloader)


def require_epochs(loop: BaseLoop, what: str) -> None:
    """Raise ConfigError if a training loop does not count epochs.

    Args:
        loop: The loop.
        what: What is counted in epochs, with its verb.
    """
    if not isinstance(loop, EpochBasedTrainLoop):
        raise ConfigError(f'train_cfg.type = {type(loop).__name__}: {what} counted in epochs; use '
                          f'EpochBasedTrainLoop with `max_epochs`, or IterationTrainLoop, which '
                          f'has the settings of IterBasedTrainLoop and begins an epoch with every '
                          f'pass through the data set.')


def prototype_datasets(runner: Any) -> list[ConfigDict]:
    """Configs of the data sets to choose prototypes from: the training data, as tests see them.

    Wrappers that repeat or mix images are removed.

    Args:
        runner: MMEngine's runner.
    """
    return prototype_configs(runner.cfg)


def prototype_configs(config: Config) -> list[ConfigDict]:
    """The same, from the runner's config."""
    tested = config.get('test_dataloader') or config.get('val_dataloader')
    seen_by = leaf_configs((tested or config.train_dataloader).dataset)
    pipeline = next(iter(seen_by.values())).pipeline
    if not tested:
        pipeline = as_tests_would(pipeline)
    return [ConfigDict({**entry, 'pipeline': pipeline})
            for entry in leaf_configs(config.train_dataloader.dataset).values()]


def as_tests_would(pipeline: Sequence[dict]) -> list[dict]:
    """A training pipeline without flips, for a config that neither validates nor tests.

    Raises:
        ConfigError: Other steps may move boxes.
    """
    named = {str(getattr(step['type'], '__name__', step['type'])).rpartition('.')[2]: step
             for step in pipeline}
    flip = named.pop('RandomFlip', None)
    moving = [name for name in named if name not in NOT_MOVING]
    if moving:
        raise ConfigError(f'prototypes are chosen from the training images as tests see them, and '
                          f'the config has neither `test_dataloader` nor `val_dataloader`; '
                          f'{", ".join(moving)} of train_dataloader.dataset.pipeline may move '
                          f'boxes. Give a `test_dataloader`, `test_cfg` and `test_evaluator`.')
    return [step for step in pipeline if step is not flip]


def leaf_configs(config: ConfigDict, key: str = '') -> dict[str, ConfigDict]:
    """Configs of the data sets inside of wrappers, by their place.

    Args:
        config: Config of a data set.
        key: Its place.
    """
    if 'datasets' in config:
        return {place: leaf for number, entry in enumerate(config.datasets)
                for place, leaf in leaf_configs(entry, f'{key}.datasets.{number}').items()}
    if 'dataset' in config:
        return leaf_configs(config.dataset, f'{key}.dataset')
    return {key: config}
