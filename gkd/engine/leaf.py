"""A data set without wrappers for MMDetection 3, whose files are checked."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Callable, Optional

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.transforms import LoadMultiChannelImageFromFiles
from mmdet.datasets.xml_style import XMLDataset

from gkd.datasets import prepare_embedded
from gkd.datasets.checks import (
    check_categories,
    check_files_exist,
    check_instances,
    no_image,
    unusable,
    warn_of_flat_boxes,
)
from gkd.datasets.inspection import Finding
from gkd.engine.loading import check_loaded, on_disk
from gkd.errors import DataError, GKDError
from gkd.watching import watched

# Where data sets look for images.
IMAGE_PREFIXES = ('img', 'img_path', 'sub_data_root')


class Leaf:
    """A data set without wrappers, whose files are checked while it reads them.

    MMDetection keeps only the annotations that it trains on, in packed form; so they are checked
    before that.

    Args:
        dataset: The data set, which has read nothing yet.
        key: Its place in the config, for messages.

    Attributes:
        findings: What was found in a COCO file.
        has_boxes: Whether there is a box to be trained on, or none is needed for a test.
    """

    def __init__(self, dataset: BaseDetDataset, key: str):
        self.dataset = dataset
        self.key = key
        self.coco: Optional[COCO] = None
        self.findings: list[Finding] = []
        self.has_boxes = True

    def read(self) -> None:
        """Read the annotations, and check them, the classes and the images.

        Raises:
            DataError: They are missing or broken, or do not fit the config.
        """
        self.check_places()
        dataset = self.dataset
        with ExitStack() as watches:
            if isinstance(dataset, CocoDataset):
                watches.enter_context(watched(dataset, 'COCOAPI', self.keep_coco))
            watches.enter_context(watched(dataset, 'parse_data_info', self.naming_image))
            watches.enter_context(watched(dataset, 'filter_data', self.check_before_filtering))
            try:
                dataset.full_init()
            except GKDError:
                raise
            except Exception as error:
                reason = str(error).rstrip('.')
                raise DataError(
                    f'{self.key}.ann_file: cannot read {dataset.ann_file!r} as '
                    f'{type(dataset).__name__}: {type(error).__name__}: {reason}.') from error

    def check_places(self) -> None:
        """Raise DataError if the annotation file or the folder of images is not there.

        Embedded data sets are created. What is not on a disk is not checked.
        """
        dataset, key = self.dataset, self.key
        if not dataset.ann_file:
            if isinstance(dataset, (CocoDataset, XMLDataset)):
                raise DataError(f'{key} has no `ann_file`, which names its annotations.')
        elif on_disk(dataset.ann_file, dataset.backend_args):
            prepare_embedded(dataset.ann_file)
            if not osp.exists(dataset.ann_file):
                raise DataError(self.absent('ann_file', 'file', dataset.ann_file))
        if type(dataset).parse_data_info is CocoDataset.parse_data_info and \
                'img' not in dataset.data_prefix:
            raise DataError(f'{key}.data_prefix has no `img`, which names the folder of images; '
                            f'`img=""` if `data_root` is that folder.')
        for name in IMAGE_PREFIXES:
            folder = dataset.data_prefix.get(name)
            if folder and self.loads_from_disk(folder) and not osp.isdir(folder):
                raise DataError(self.absent(f'data_prefix.{name}', 'folder', folder))
        if dataset.proposal_file:
            path = osp.join(dataset.data_root or '', dataset.proposal_file)
            if on_disk(path, dataset.backend_args) and not osp.exists(path):
                raise DataError(self.absent('proposal_file', 'file', path))

    def absent(self, setting: str, what: str, path: str) -> str:
        """The message that what a setting names is not there."""
        root = self.dataset.data_root
        if not root or not path.startswith(root):
            return f'{self.key}.{setting}: no such {what}: {path}'
        if not osp.isdir(root):
            return f'{self.key}.data_root: no such folder: {root}'
        return (f'{self.key}.{setting}: no such {what}: {path}, of `data_root` = {root!r} and '
                f'`{setting}` = {path[len(root):].lstrip("/")!r}')

    def loads_from_disk(self, path: str) -> bool:
        """Whether the pipeline reads images from files, and a path is one of a disk."""
        steps = [step for step in getattr(self.dataset.pipeline, 'transforms', ())
                 if isinstance(step, (LoadImageFromFile, LoadMultiChannelImageFromFiles))]
        return bool(steps) and on_disk(path, getattr(steps[0], 'backend_args', None)
                                       or getattr(steps[0], 'file_client_args', None))

    def keep_coco(self, read: Callable, path: str) -> COCO:
        """Stands in for the data set's interface to COCO files, and keeps what it returns."""
        try:
            self.coco = read(path)
        except DataError as error:
            raise DataError(f'{self.key}.ann_file: {error}') from None
        self.findings = getattr(self.coco, 'findings', [])
        return self.coco

    def naming_image(self, parse: Callable, info: dict) -> Any:
        """Stands in for the method that reads an image's annotations, and names it in errors."""
        try:
            return parse(info)
        except Exception as error:
            image = info.get('raw_img_info', info)
            raise unusable(image.get('file_name') or image.get('img_path'), self.dataset.ann_file,
                           f'{type(error).__name__}: {error}', self.key) from None

    def check_before_filtering(self, keep: Callable) -> list[dict]:
        """Stands in for the method that leaves out images, and checks those that it keeps."""
        dataset, key, source = self.dataset, self.key, self.dataset.ann_file
        classes = dataset.metainfo.get('classes')
        if self.coco is not None and classes is not None:
            check_categories(classes, category_names(self.coco), source, key)
        infos = keep()
        if not infos:
            raise no_image(source, classes or (), self.findings, key)
        self.check_images(infos)
        if self.coco is None:
            self.check_boxes(infos, classes)
        check_loaded(dataset, self.coco, infos, key)
        self.has_boxes = dataset.test_mode or any(
            not instance.get('ignore_flag') for info in infos
            for instance in info.get('instances') or ())
        self.coco = None  # it takes much memory
        return infos

    def check_images(self, infos: list[dict]) -> None:
        """Raise DataError if an image is missing; only files on a disk are looked for."""
        names = [info.get('img_path') for info in infos]
        paths = [path for name in names for path in (name if isinstance(name, list) else [name])
                 if path]
        if paths and self.loads_from_disk(paths[0]):
            check_files_exist(paths, self.dataset.ann_file, self.key)

    def check_boxes(self, infos: list[dict], classes: Optional[Sequence[str]]) -> None:
        """Raise DataError if a box or label cannot be used; COCO files were inspected whole."""
        trained = []
        for info in infos:
            instances = info.get('instances') or ()
            labels = [instance.get('bbox_label') for instance in instances]
            check_instances([instance.get('bbox') for instance in instances], labels,
                            len(classes or labels), info.get('img_path'), self.dataset.ann_file,
                            self.key)
            trained += [(info, info.get('img_path'), instance['bbox']) for instance in instances
                        if not self.dataset.test_mode and not instance.get('ignore_flag')]
        warn_of_flat_boxes(trained, self.dataset.ann_file)


def category_names(coco: COCO) -> list[str]:
    """Names of a COCO file's categories, in its order."""
    return [category['name'] for category in coco.dataset['categories']]
