"""Whether data give what their pipeline loads besides boxes: masks, maps of classes, proposals."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmdet.datasets import CustomDataset
from mmdet.datasets.pipelines import (
    LoadAnnotations,
    LoadPanopticAnnotations,
    LoadProposals,
)
from pycocotools.coco import COCO

from gkd.datasets.checks import check_files_exist, check_masks, not_named, without


def check_loaded(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if a data set does not give what its pipeline loads.

    Steps of a pipeline that are none of MMDetection's may find their own way to what they load.

    Args:
        dataset: A data set without wrappers, with an image at least.
        key: Place in the config, for messages.
    """
    for step in getattr(dataset.pipeline, 'transforms', ()):
        kind = type(step)
        if kind is LoadPanopticAnnotations and (step.with_mask or step.with_seg):
            check_panoptic(dataset, key)
            check_maps(dataset, step, key)
            continue
        if getattr(step, 'with_mask', False):
            check_instance_masks(dataset, step, key)
        if kind is LoadAnnotations and step.with_seg:
            check_maps(dataset, step, key)
        if kind is LoadProposals and dataset.proposals is None:
            raise not_named('proposals', f'{key}.proposal_file', 'the file with a list of arrays '
                            '(n, 4) or (n, 5), one for each image in the order of `ann_file`')


def check_instance_masks(dataset: CustomDataset, step: Any, key: str) -> None:
    """Raise DataError if an annotation has no mask that a step can load."""
    if isinstance(getattr(dataset, 'coco', None), COCO):
        check_masks((annotation for info in dataset.data_infos
                     for annotation in dataset.coco.imgToAnns[info['id']]
                     if not annotation.get('ignore')), dataset.ann_file, key,
                    only_polygons=not getattr(step, 'poly2mask', True))
    elif type(step) is LoadAnnotations and 'masks' not in dataset.get_ann_info(0):
        raise without('masks', dataset, key)


def check_panoptic(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if a data set does not describe the segments of its maps."""
    masks = next(filter(None, (dataset.get_ann_info(index).get('masks')
                               for index in range(len(dataset)))), ())
    if not all(isinstance(mask, dict) and 'category' in mask for mask in masks) or not masks:
        raise without('panoptic segments', dataset, key)


def check_maps(dataset: CustomDataset, step: LoadAnnotations, key: str) -> None:
    """Raise DataError if the map of an image's classes is not there.

    Only files on a disk are looked for, as with images.
    """
    names = [dataset.get_ann_info(index).get('seg_map') for index in range(len(dataset))]
    if None in names:
        raise without('segmentation maps', dataset, key)
    if dataset.seg_prefix is None:
        raise not_named('segmentation maps', f'{key}.seg_prefix', 'their folder')
    if step.file_client_args == dict(backend='disk'):
        check_files_exist([osp.join(dataset.seg_prefix, name) for name in names],
                          dataset.ann_file, key, 'segmentation maps', 'seg_prefix')
