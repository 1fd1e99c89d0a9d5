"""Whether data give what their pipeline loads besides boxes: masks, maps of classes, proposals."""

from __future__ import annotations

from typing import Any, Optional

from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.coco_panoptic import CocoPanopticDataset
from mmdet.datasets.transforms import LoadAnnotations, LoadPanopticAnnotations, LoadProposals

from gkd.datasets.checks import check_files_exist, check_masks, not_named, without


def check_loaded(dataset: BaseDetDataset, coco: Optional[COCO], infos: list[dict], key: str,
                 ) -> None:
    """Raise DataError if a data set does not give what its pipeline loads.

    Steps of a pipeline that are none of MMDetection's may find their own way to what they load.

    Args:
        dataset: A data set without wrappers.
        coco: Its interface to a COCO file; None for other formats.
        infos: What it knows of its images, one at least.
        key: Its place in the config, for messages.
    """
    for step in getattr(dataset.pipeline, 'transforms', ()):
        kind = type(step)
        if kind is LoadPanopticAnnotations:
            if (step.with_mask or step.with_seg) and 'segments_info' not in infos[0]:
                raise without('panoptic segments', dataset, key)
            check_maps(dataset, step, infos, key)
            continue
        if getattr(step, 'with_mask', False):
            check_instance_masks(dataset, coco, step, infos, key)
        if kind is LoadAnnotations and step.with_seg:
            check_maps(dataset, step, infos, key)
        if kind is LoadProposals and 'proposals' not in infos[0]:
            raise not_named('proposals', f'{key}.proposal_file', 'the file with a dict of '
                            '`bboxes` (n, 4) and `scores` (n,), by the last folder and the name '
                            'of each image')


def check_instance_masks(dataset: BaseDetDataset, coco: Optional[COCO], step: Any,
                         infos: list[dict], key: str) -> None:
    """Raise DataError if an annotation has no mask that a step can load."""
    if coco is not None:
        check_masks((annotation for info in infos
                     for annotation in coco.imgToAnns[info['img_id']]
                     if not annotation.get('ignore')), dataset.ann_file, key,
                    only_polygons=not getattr(step, 'poly2mask', True))
    elif type(step) is LoadAnnotations and any(
            'mask' not in instance for info in infos for instance in info.get('instances') or ()):
        raise without('masks', dataset, key)


def check_maps(dataset: BaseDetDataset, step: LoadAnnotations, infos: list[dict], key: str,
               ) -> None:
    """Raise DataError if the map of an image's classes is not there.

    Only files on a disk are looked for, as with images. A test does without maps.
    """
    paths = [info.get('seg_map_path') for info in infos]
    if None not in paths:
        if on_disk(paths[0], step.backend_args):
            check_files_exist(paths, dataset.ann_file, key, 'segmentation maps',
                              'data_prefix.seg')
    elif not dataset.test_mode:
        if isinstance(dataset, (CocoDataset, CocoPanopticDataset)):
            raise not_named('segmentation maps', f'{key}.data_prefix.seg', 'their folder')
        raise without('segmentation maps', dataset, key)


def on_disk(path: str, backend: Optional[dict]) -> bool:
    """Whether MMEngine reads a path from a disk.

    Args:
        path: The path.
        backend: Settings of the storage, ``backend_args`` or the former ``file_client_args``.

    Example:
        >>> on_disk('data/a.png', None), on_disk('s3://data/a.png', None)
        (True, False)
        >>> on_disk('data/a.png', dict(backend='petrel'))
        False
    """
    return '://' not in path and (backend or {}).get('backend', 'local') in ('local', 'disk')
