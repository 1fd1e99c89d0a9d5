"""Build the data sets and evaluators of a config for MMDetection 3, and check that they fit."""

from __future__ import annotations

import os.path as osp
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, Optional

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.transforms import LoadMultiChannelImageFromFiles
from mmdet.datasets.xml_style import XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR, DefaultScope
from torch import nn

from gkd.datasets import prepare_embedded
from gkd.datasets.checks import (
    check_categories,
    check_class_names,
    check_images_exist,
    check_instances,
    check_masks,
    no_box,
    no_image,
    unusable,
)
from gkd.datasets.coco_json import load_coco
from gkd.datasets.inspection import Finding
from gkd.detectors.entries import name_of
from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError, GKDError, naming
from gkd.frameworks import logger
from gkd.frameworks.mmdet3 import leaf_configs
from gkd.matching import LOADED_BY
from gkd.watching import watched

# Where data sets look for images.
IMAGE_PREFIXES = ('img', 'img_path', 'sub_data_root')


@dataclass
class Part:
    """What a loop of the runner takes, built and checked.

    Attributes:
        dataset: The data set, with its wrappers.
        evaluator: Measures detections in it; None for training.
    """

    dataset: Any
    evaluator: Optional[Evaluator] = None


def build_part(config: Config, part: str) -> Part:
    """Build the data set of a loop and its evaluator, and check both.

    Args:
        config: A config.
        part: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ConfigError: A setting is wrong.
        DataError: Annotations or images are missing or broken, or do not fit the config.
    """
    with naming(f'{part}_dataloader'):
        entry = config[f'{part}_dataloader']['dataset']
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        dataset = build_checked_dataset(entry, f'{part}_dataloader.dataset')
        settings = None if part == 'train' else config.get(f'{part}_evaluator')
        return Part(dataset, settings and build_evaluator(settings, part, dataset))


def build_checked_dataset(config: ConfigDict, key: str) -> Any:
    """Build a data set and check that its files are there and fit its settings.

    Args:
        config: Config of the data set, possibly of a wrapper around others.
        key: Place in the config, for messages.

    Raises:
        ConfigError: A setting is wrong.
        DataError: Annotations or images are missing or broken.
    """
    leaves: list[Leaf] = []
    with naming(key):
        dataset = DATASETS.build(checked_dataset(config, key, leaves))
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    if leaves and not any(leaf.has_boxes for leaf in leaves):
        raise no_box(leaves[0].dataset.ann_file, leaves[0].findings, leaves[0].key)
    return dataset


def built(dataset: Any) -> dict:
    """A config that stands for a data set that is built: MMEngine calls its ``type``."""
    return dict(type=lambda: dataset)


def checked_dataset(entry: ConfigDict, key: str, leaves: list[Leaf]) -> dict:
    """A config that stands for a data set that is built, and checked inside of its wrappers.

    Args:
        entry: The config.
        key: Its place, for messages.
        leaves: Gets what was built and checked.
    """
    if 'datasets' in entry:
        inner = [checked_dataset(one, f'{key}.datasets.{number}', leaves)
                 for number, one in enumerate(entry['datasets'])]
        return built(build_named({**entry, 'datasets': inner}, key))
    if 'dataset' in entry:
        inner = checked_dataset(entry['dataset'], f'{key}.dataset', leaves)
        return built(build_named({**entry, 'dataset': inner}, key))
    with naming(f'{key}.metainfo'):
        check_class_names((entry.get('metainfo') or {}).get('classes'),
                          f'{key}.metainfo.classes')
    kind = dataset_class(entry)
    if kind is None or not issubclass(kind, BaseDetDataset):
        return entry  # nothing is known of its files, or of its type
    dataset = build_named({**entry, 'lazy_init': True}, key)
    leaf = Leaf(dataset, key)
    leaf.read()
    leaves.append(leaf)
    return built(dataset)


def build_named(entry: dict, key: str) -> Any:
    """Build a data set; a wrong setting is named.

    Raises:
        ConfigError: A setting is wrong.
    """
    with naming(key):
        try:
            return DATASETS.build(entry)
        except TypeError as error:
            # Python names the class that takes no such argument, which may be a base class.
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in entry:
                raise
            raise ConfigError(f'{key}.{unknown[1]}: {name_of(entry["type"])} has no such '
                              f'setting.') from error


class Leaf:
    """A data set without wrappers, whose files are checked while it reads them.

    MMDetection keeps of the annotations only what it trains on, and packs that; so they are looked
    at before.

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
            watches.enter_context(watched(dataset, 'filter_data', self.look))
            try:
                dataset.full_init()
            except GKDError:
                raise
            except Exception as error:
                raise DataError(
                    f'{self.key}.ann_file: cannot read {dataset.ann_file!r} as '
                    f'{type(dataset).__name__}: {type(error).__name__}: {error}.') from error

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
        """Stands for the data set's interface to COCO files, and keeps what it returns."""
        try:
            self.coco = read(path)
        except DataError as error:
            raise DataError(f'{self.key}.ann_file: {error}') from None
        self.findings = getattr(self.coco, 'findings', [])
        return self.coco

    def naming_image(self, parse: Callable, info: dict) -> Any:
        """Stands for the method that reads the annotations of an image, and names it in errors."""
        try:
            return parse(info)
        except Exception as error:
            image = info.get('raw_img_info', info)
            raise unusable(image.get('file_name') or image.get('img_path'), self.dataset.ann_file,
                           f'{type(error).__name__}: {error}', self.key) from None

    def look(self, keep: Callable) -> list[dict]:
        """Stands for the method that leaves out images, and looks at those that it keeps."""
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
        elif any(getattr(step, 'with_mask', False)
                 for step in getattr(dataset.pipeline, 'transforms', ())):
            check_masks((annotation for info in infos
                         for annotation in self.coco.imgToAnns[info['img_id']]
                         if not annotation.get('ignore')), source, key)
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
            check_images_exist(paths, self.dataset.ann_file, self.key)

    def check_boxes(self, infos: list[dict], classes: Optional[Sequence[str]]) -> None:
        """Raise DataError if a box or label cannot be used; COCO files were inspected whole."""
        for info in infos:
            instances = info.get('instances') or ()
            labels = [instance.get('bbox_label') for instance in instances]
            check_instances([instance.get('bbox') for instance in instances], labels,
                            len(classes or labels), info.get('img_path'), self.dataset.ann_file,
                            self.key)


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


def category_names(coco: COCO) -> list[str]:
    """Names of a COCO file's categories, in its order."""
    return [category['name'] for category in coco.dataset['categories']]


def build_evaluator(settings: Any, part: str, dataset: Any) -> Evaluator:
    """Build what measures detections, and check that its annotations are those of the images.

    Args:
        settings: Config of a metric, a list of them, or a config with ``metrics``.
        part: ``'val'`` or ``'test'``.
        dataset: The data set of that part.

    Raises:
        ConfigError: A setting is wrong.
        DataError: Its annotations are missing or broken, or are of other images.
    """
    key = f'{part}_evaluator'
    files = dict(metric_files(settings, key))
    for place, path in files.items():
        prepare_embedded(path)
        if not osp.exists(path):
            raise DataError(f'{place}: no such file: {path}. An evaluator does not look below '
                            f'`data_root`: give the whole path.')
    with naming(key):
        try:
            if isinstance(settings, dict) and 'metrics' in settings:
                evaluator = EVALUATOR.build({'type': 'Evaluator', **settings})
            else:
                evaluator = Evaluator(settings)
        except DataError as error:
            raise DataError(f'{key}.ann_file: {error}') from None
        except RuntimeError as error:  # so a metric says what it needs to be installed
            raise ConfigError(f'{key}: {error}') from error
        for metric in evaluator.metrics:
            coco = getattr(metric, '_coco_api', None)
            if isinstance(coco, COCO):
                check_evaluated(dataset, coco, part, ', '.join(files.values()))
    return evaluator


def metric_files(settings: Any, key: str) -> Iterator[tuple[str, str]]:
    """Place and path of every annotation file on a disk that metrics name."""
    if isinstance(settings, (list, tuple)):
        for number, entry in enumerate(settings):
            yield from metric_files(entry, f'{key}.{number}')
    elif isinstance(settings, dict):
        if 'metrics' in settings:
            yield from metric_files(settings['metrics'], f'{key}.metrics')
        path = settings.get('ann_file')
        if isinstance(path, str) and on_disk(path, settings.get('backend_args')):
            yield f'{key}.ann_file', path


def check_evaluated(dataset: Any, coco: COCO, part: str, source: str) -> None:
    """Raise DataError if detections would be measured by annotations of other images or classes.

    The log tells of images that only the annotations have: nothing will be detected in them.

    Args:
        dataset: What is detected in.
        coco: The annotations.
        part: ``'val'`` or ``'test'``.
        source: Their file.
    """
    key = f'{part}_evaluator.ann_file'
    check_categories(dataset.metainfo['classes'], category_names(coco), source, key)
    counts = Counter(dataset.get_data_info(index)['img_id'] for index in range(len(dataset)))
    images = counts.keys()
    for image, times in counts.most_common(1):
        if times > 1:
            raise DataError(f'{part}_dataloader has {times} images with the id {image}, by which '
                            f'an evaluator tells images apart. Evaluate on one annotation file '
                            f'with an id for each image, and do not repeat it.')
    missing = sorted(images - coco.imgs.keys(), key=str)
    if missing:
        raise DataError(f'{key}: {len(missing)} of {len(images)} images of {part}_dataloader are '
                        f'not in {source}, first the one with id {missing[0]}. Evaluate with the '
                        f'annotations of the same images.')
    others = len(coco.imgs) - len(images)
    if others:
        logger().warning(f'{key}: {source} has {others} images that {part}_dataloader does not '
                         f'have; their objects count as missed.')


def look_at_test_data(config: Config) -> None:
    """Check annotations that only a test will read, so that it does not fail after the training.

    The log names a file that does not exist yet; it is not needed now.

    Args:
        config: A config to train with.

    Raises:
        DataError: A file exists, but is broken.
    """
    read = {path for part in ('train', 'val') for _, path in annotation_files(config, part)}
    for key, path in annotation_files(config, 'test'):
        if path in read:
            continue
        read.add(path)
        if not osp.exists(path):
            logger().warning(f'{key}: no such file: {path}. A test will need it.')
            continue
        try:
            load_coco(path)
        except DataError as error:
            raise DataError(f'{key}: {error}') from None


def annotation_files(config: Config, part: str) -> Iterator[tuple[str, str]]:
    """Place and path of every COCO file on a disk that a part's data sets name."""
    loader = config.get(f'{part}_dataloader')
    if not loader:
        return
    for key, leaf in leaf_configs(loader['dataset'], f'{part}_dataloader.dataset').items():
        path = leaf.get('ann_file')
        if isinstance(path, str) and is_coco(leaf) and on_disk(path, leaf.get('backend_args')):
            yield f'{key}.ann_file', osp.join(leaf.get('data_root') or '', path)


def dataset_class(config: dict) -> Optional[type]:
    """The class of a data set, which a config names or, in the new style, holds; else None."""
    kind = config.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return kind if isinstance(kind, type) else None


def is_coco(config: ConfigDict) -> bool:
    """Whether a data set reads its annotations as MMDetection's ``CocoDataset`` does."""
    kind = dataset_class(config)
    return kind is not None and issubclass(kind, CocoDataset) and \
        kind.load_data_list is CocoDataset.load_data_list


def check_ground_truth(model: nn.Module, config: ConfigDict, key: str) -> None:
    """Raise ConfigError if no pipeline loads what a distiller's student trains on.

    Args:
        model: A detector; only a distiller's student is looked at.
        config: Config of the data set, possibly of a wrapper around others.
        key: Its place in the config, for messages.
    """
    if not isinstance(model, Distiller):
        return
    steps = [step for leaf in leaf_configs(config).values()
             for step in leaf.get('pipeline') or ()]
    # That of BoxInst makes masks of the boxes.
    makes_masks = type(model.data_preprocessor).__name__ == 'BoxInstDataPreprocessor'
    loaded = {'gt_masks': makes_masks or any(step.get('with_mask') for step in steps),
              'gt_semantic_seg': any(step.get('with_seg') for step in steps),
              'proposals': any(name_of(step.get('type')) == 'LoadProposals' for step in steps)}
    for name in model.pair.student.ground_truth:
        if not loaded[name]:
            raise ConfigError(
                f'{key}.pipeline: student {model.pair.student.name} trains on `{name}`, which is '
                f'not loaded: load it by {LOADED_BY[name]}.')
