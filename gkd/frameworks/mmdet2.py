"""MMDetection 2.x, on mmcv 1.x."""

from __future__ import annotations

import logging
import os.path as osp
from collections.abc import Sequence
from typing import Any, Optional, Union

import mmcv
import numpy as np
from mmcv import Config, ConfigDict
from mmcv.cnn import ContextBlock, NonLocal2d, fuse_conv_bn
from mmcv.cnn.utils import revert_sync_batchnorm
from mmcv.parallel import DataContainer
from mmcv.runner import HOOKS, Hook, get_dist_info
from mmdet.core import BitmapMasks, PolygonMasks, anchor_inside_flags, bbox2roi, bbox_overlaps
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.datasets import CustomDataset, OpenImagesDataset, VOCDataset, build_dataset
from mmdet.models import BACKBONES, DETECTORS, build_detector
from mmdet.models.backbones.efficientnet import EfficientNet
from mmdet.models.detectors import RPN, BaseDetector
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
from gkd.frameworks.open_images import in_pixels, named_image, size_of

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

Dataset = CustomDataset
UntimedHook = Hook  # mmcv's timer comes last
VOC_CLASSES = VOCDataset.CLASSES
# What a batch holds besides tensors and plain Python, by type: the arguments to make it again.
BATCH_PARTS = {BitmapMasks: mask_parts, PolygonMasks: mask_parts}
# Settings of a detector that configs older than MMDetection 2.4 keep beside its `model`.
BESIDE_MODEL = ('train_cfg', 'test_cfg')
# Images of a step for each GPU, and processes that load them, for messages.
BATCH_SIZE_SETTING = 'data.samples_per_gpu'
WORKERS_SETTING = 'data.workers_per_gpu'
# Settings of a data set, for messages.
CLASSES_SETTING = 'classes'
IMAGES_SETTING = 'img_prefix'
# What a pipeline makes of an image, and by which step, for messages.
SAMPLE_PARTS = ('img', 'img_metas')
PACKING = ('DefaultFormatBundle, and Collect, whose `keys` and `meta_keys` name what detectors '
           'get and are told of an image')
# A detector's method that returns the losses of a training step.
LOSSES_METHOD = 'forward_train'
# What is read at the top of a config; all else there is a variable of the file.
TOP_LEVEL = frozenset((
    'auto_resume', 'auto_scale_lr', 'checkpoint_config', 'cpu_channels_last',
    'cudnn_benchmark', 'custom_hooks', 'custom_imports', 'data', 'default_scope',
    'deterministic', 'device', 'dist_params', 'evaluation', 'find_unused_parameters', 'fp16',
    'gpu_ids', 'gpus', 'load_from', 'log_config', 'log_level', 'lr_config', 'methods', 'model',
    'momentum_config', 'mp_start_method', 'opencv_num_threads', 'optimizer',
    'optimizer_config', 'resume_from', 'runner', 'seed', 'test_cfg', 'total_epochs',
    'train_cfg', 'variants', 'work_dir', 'workflow',
))
# Of which settings there only these keys are read; those of the others go to a class or function.
KEYS_READ = {
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'data': ('train', 'val', 'test', 'train_dataloader', 'val_dataloader', 'test_dataloader',
             'samples_per_gpu', 'workers_per_gpu', 'persistent_workers', 'imgs_per_gpu'),
    'log_config': ('interval', 'hooks'),
}


def logger() -> logging.Logger:
    """MMDetection's logger."""
    return mmcv.utils.get_logger('mmdet')


class DetectorShell(BaseDetector):
    """The methods that MMDetection calls on a detector; the one in ``student`` answers them."""

    def adopt(self, student: BaseDetector) -> None:
        """Take over what belongs to a whole detector; here nothing does."""

    def losses(self, batch: Batch) -> dict[str, Any]:
        """Losses of a training step; a subclass defines them."""
        raise NotImplementedError

    def forward_train(self, img: Tensor, img_metas: list[dict], gt_bboxes: list[Tensor],
                      gt_labels: list[Tensor], **kwargs) -> dict[str, Any]:
        """Losses of a training step, from what the data pipeline collects."""
        return self.losses(to_batch(img, img_metas, gt_bboxes, gt_labels, **kwargs))

    def extract_feat(self, img: Tensor) -> tuple[Tensor, ...]:
        """FPN maps of the student."""
        return self.student.extract_feat(img)

    def forward_test(self, imgs: list[Tensor], img_metas: list[list[dict]], **kwargs) -> list:
        """Detections of the student, in MMDetection's format."""
        return self.student.forward_test(imgs, img_metas, **kwargs)

    def simple_test(self, img: Tensor, img_metas: list[dict], **kwargs) -> list:
        """Detections of the student on one view of each image."""
        return self.student.simple_test(img, img_metas, **kwargs)

    def aug_test(self, imgs: list[Tensor], img_metas: list[list[dict]], **kwargs) -> list:
        """Detections of the student on several views of an image."""
        return self.student.aug_test(imgs, img_metas, **kwargs)


def to_batch(img: Tensor, img_metas: list[dict], gt_bboxes: list[Tensor],
             gt_labels: list[Tensor], **kwargs) -> Batch:
    """A batch from the arguments of a detector's ``forward_train``."""
    native = dict(img=img, img_metas=img_metas, gt_bboxes=gt_bboxes, gt_labels=gt_labels, **kwargs)
    return Batch(img, img_metas, gt_bboxes, gt_labels, native)


def synthetic_batch(images: Tensor, boxes: Union[Tensor, Sequence[Tensor]],
                    labels: Union[Tensor, Sequence[Tensor]],
                    gt_masks: bool = False,
                    gt_semantic_seg: Optional[Tensor] = None,
                    proposals: Optional[Tensor] = None,
                    size: Optional[tuple[int, int]] = None) -> Batch:
    """A training batch of given images and ground truth.

    Args:
        images: ``(B, C, H, W)``.
        boxes: ``(n, 4)`` in pixels, of every image, or a list with those of each.
        labels: ``(n,)`` int64, likewise.
        gt_masks: Whether boxes have masks, which fill them.
        gt_semantic_seg: Classes of the cells of a map, ``(h, w)`` int64.
        proposals: ``(m, 4)`` in pixels.
        size: Height and width of the images without their padding; by default they have none.
    """
    height, width = images.shape[-2:]
    shape = (height, width, 3)
    meta = dict(img_shape=(*(size or (height, width)), 3), ori_shape=shape, pad_shape=shape,
                flip=False, filename='', ori_filename='', scale_factor=np.ones(4, np.float32),
                batch_input_shape=(height, width), border=np.array([0, height, 0, width]))
    boxes, further = of_each_image(boxes, len(images)), {}
    if gt_masks:
        further['gt_masks'] = [BitmapMasks(filled_boxes(own, height, width), height, width)
                               for own in boxes]
    if gt_semantic_seg is not None:
        further['gt_semantic_seg'] = gt_semantic_seg.expand(len(images), 1, -1, -1).clone()
    if proposals is not None:
        further['proposals'] = [proposals.clone() for _ in images]
    return to_batch(images, [dict(meta) for _ in images], boxes,
                    of_each_image(labels, len(images)), **further)


def student_losses(student: BaseDetector, batch: Batch) -> dict[str, Any]:
    """The detection losses of a batch."""
    return student.forward_train(**batch.native)


def positive_boxes(sampled: Any) -> Tensor:
    """Positives of a ``SamplingResult``."""
    return sampled.pos_bboxes


def sampled_boxes(sampled: Any) -> Tensor:
    """All boxes of a ``SamplingResult``, positives first."""
    return sampled.bboxes


def network_input(detector: BaseDetector, images: Tensor,
                  sizes: Optional[Sequence[tuple[int, int]]] = None) -> Tensor:
    """Images of a test pipeline as the detector's layers take them.

    They are normalised already. A teacher that was trained with another normalisation has a
    conversion for them, which is applied here.

    Args:
        detector: Teacher or student.
        images: ``(B, 3, H, W)``.
        sizes: Height and width of every image without its padding; by default it has none.
    """
    change = getattr(detector, 'test_images', None)
    return images if change is None else change(
        images, sizes or [tuple(images.shape[-2:])] * len(images))


def image_settings(detector: BaseDetector) -> Optional[dict]:
    """How a detector normalises images: None, because the pipelines do it."""
    return None


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """Names of a data set's classes."""
    return dataset.CLASSES


def image_info(dataset: Dataset, index: int) -> dict[str, Any]:
    """An image's ``folder``, its ``filename`` within it, its ``width`` and ``height``.

    Open Images' annotations have no sizes; those of the files are taken, and kept.
    """
    info = named_image(dataset.data_infos[index])
    if 'width' not in info:
        width, height = size_of(osp.join(dataset.img_prefix or '', info['filename']))
        info.update(width=width, height=height)
    return dict(folder=dataset.img_prefix, filename=info['filename'], width=info['width'],
                height=info['height'])


def annotation(dataset: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``(n, 4)`` in pixels and labels ``(n,)`` of an image; crowds are left out."""
    found = dataset.get_ann_info(index)
    if isinstance(dataset, OpenImagesDataset):
        info = image_info(dataset, index)
        return in_pixels(found, (info['width'], info['height']))
    return found['bboxes'], found['labels']


def test_view(dataset: Dataset, index: int
              ) -> tuple[Tensor, np.ndarray, np.ndarray, tuple[int, int]]:
    """An image ``(3, H, W)`` as the test pipeline makes it.

    Returns:
        The image, the factors of its boxes ``(4,)``, and its :func:`placement`.
    """
    views = dataset.prepare_test_img(index)
    image, meta = views['img'][0], views['img_metas'][0].data
    if isinstance(image, DataContainer):
        image = image.data
    require_told(meta, dataset)
    return image, np.asarray(meta['scale_factor'], dtype=np.float32), *placement(meta)


def epochs_in_all(runner: Any) -> float:
    """Epochs of a whole training; one that counts iterations may end inside an epoch."""
    return runner.max_iters / len(runner.data_loader)


def prototype_datasets(runner: Any) -> list[ConfigDict]:
    """Configs of the data sets to choose prototypes from; mmcv's runner does not know them.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError('PrototypeHook needs `datasets`: configs of annotated data sets with the '
                      'test pipeline (tools/train.py fills them in).')
