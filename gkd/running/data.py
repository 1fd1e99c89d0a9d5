"""Build the data sets of a config, and check that they are whole and fit the detectors."""

from __future__ import annotations

import copy
import os
import os.path as osp
import re
from collections import defaultdict
from typing import Optional

import numpy as np
from mmcv import Config, ConfigDict
from mmcv.utils import get_logger
from mmdet.datasets import (
    DATASETS,
    CocoDataset,
    CustomDataset,
    XMLDataset,
    build_dataset,
    replace_ImageToTensor,
)
from mmdet.datasets.pipelines import LoadImageFromFile, LoadMultiChannelImageFromFiles
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import Dataset

from gkd.compat.coco import InspectedCOCO
from gkd.datasets import prepare_embedded
from gkd.datasets.coco_json import load_coco
from gkd.datasets.inspection import mask_faults
from gkd.distiller import Distiller
from gkd.errors import ConfigError, DataError
from gkd.running.config import naming, shorten


def prototype_datasets(config: Config) -> list[ConfigDict]:
    """Configs of the data sets that prototypes come from: the training data, as tests see it.

    Wrappers that repeat, balance or mix images are removed: every image counts once.
    """
    with naming('data.test'):
        pipeline = leaf_configs(config.data.test)[0].pipeline
    leaves = []
    waiting = [config.data.train]
    while waiting:
        entry = waiting.pop(0)
        if isinstance(entry, (list, tuple)):
            waiting = [*entry, *waiting]
        elif 'datasets' in entry:
            waiting = [*entry.datasets, *waiting]
        elif 'dataset' in entry:
            waiting = [entry.dataset, *waiting]
        else:
            leaves.append(ConfigDict({**entry, 'pipeline': pipeline}))
    return leaves


def build_checked_dataset(config: ConfigDict, key: str,
                          default_args: Optional[dict] = None) -> CustomDataset:
    """Build a data set and check that its files are there.

    Args:
        config: Config of the data set, possibly of a wrapper around others.
        key: Place in the config, for messages.
        default_args: Passed on to MMDetection.

    Raises:
        DataError: Annotations or images are missing or broken.
    """
    with naming(key):
        leaves = leaf_configs(config)
    for leaf in leaves:
        check_settings(leaf, key)
    try:
        dataset = build_dataset(config, default_args)
    except DataError as error:  # mmcv puts the name of the class in front
        raise DataError(f'{key}: {re.sub("^[A-Za-z]+: ", "", str(error))}') from None
    except Exception as error:
        raise DataError(
            f'{key}: cannot read {shorten([leaf.get("ann_file") for leaf in leaves])} as '
            f'{leaves[0].get("type")}: {type(error).__name__}: {error}. COCO data sets need a '
            f'JSON file with "images", "annotations" and "categories".') from error
    for leaf in leaf_datasets(dataset):
        check_classes(leaf, key)
        check_images(leaf, key)
        check_annotations(leaf, key)
    check_boxes(leaf_datasets(dataset), key)
    return dataset


def loader_settings(config: Config, part: str) -> dict:
    """Settings of the loader of ``data.val`` or ``data.test``, one image at a time by default.

    Raises:
        ConfigError: The number of images per batch is not valid.
    """
    settings = {'samples_per_gpu': 1, 'workers_per_gpu': 0, 'shuffle': False,
                **config.data.get(f'{part}_dataloader', {})}
    images = settings['samples_per_gpu']
    if not isinstance(images, int) or images < 1:
        raise ConfigError(f'data.{part}_dataloader.samples_per_gpu = {images!r}: must be a whole '
                          f'number from 1 on.')
    return settings


def build_evaluated_dataset(config: Config, part: str) -> Dataset:
    """Build a data set to evaluate on.

    Args:
        config: A config.
        part: ``'val'`` or ``'test'``.

    Raises:
        ConfigError: It cannot be evaluated.
        DataError: Annotations or images are missing or broken.
    """
    entry = copy.deepcopy(config.data[part])
    with naming(f'data.{part} or data.{part}_dataloader'):
        if loader_settings(config, part)['samples_per_gpu'] > 1:
            # As MMDetection does: images of several sizes are padded to the largest.
            for leaf in leaf_configs(entry):
                leaf.pipeline = replace_ImageToTensor(leaf.pipeline)
    dataset = build_checked_dataset(entry, f'data.{part}', dict(test_mode=True))
    if not hasattr(dataset, 'evaluate'):
        raise ConfigError(f'data.{part}.type = {type(dataset).__name__} cannot be evaluated; name '
                          f'the data set inside of it.')
    return dataset


def check_settings(entry: ConfigDict, key: str) -> None:
    """Raise DataError if the files or classes that a data set names cannot be right.

    Embedded data sets are created. Files that are not on a disk are not checked.

    Args:
        entry: Config of a data set without wrappers.
        key: Place in the config, for messages.
    """
    paths = entry.get('ann_file')
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:
        if not isinstance(path, str):
            continue
        prepare_embedded(path)
        if on_disk(entry.get('file_client_args')) and not osp.exists(
                osp.join(entry.get('data_root') or '', path)):
            raise DataError(f'{key}.ann_file: no such file: {path}')
    classes = entry.get('classes')
    if isinstance(classes, str):  # a file with a name in every line
        if '://' not in classes and not osp.isfile(classes):
            raise DataError(f'{key}.classes = {classes!r} is text, which names a file with a '
                            f'class in every line, and there is no such file. Write a list of '
                            f'names: classes = [{classes!r}]')
    elif classes is not None and (not isinstance(classes, (list, tuple)) or not classes or not all(
            isinstance(name, str) for name in classes)):
        raise DataError(f'{key}.classes = {classes!r}: must be a list of names.')
    elif classes is not None and len(set(classes)) < len(classes):
        raise DataError(f'{key}.classes = {shorten(classes)}: a class is named twice.')


def look_at_test_data(config: Config) -> None:
    """Check annotations that only a test will read, so that it does not fail after the training.

    The log names a file that does not exist yet; it is not needed now.

    Args:
        config: A config to train with.

    Raises:
        DataError: A file exists, but is broken.
    """
    with naming('data.val or data.test'):
        read = {path for part in ('train', 'val') for path in annotation_files(config.data[part])}
        leaves = leaf_configs(config.data.test)
    for leaf in leaves:
        for path in annotation_files(leaf):
            if path in read or not on_disk(leaf.get('file_client_args')):
                continue
            read.add(path)
            if not osp.exists(path):
                get_logger('mmdet').warning(f'data.test.ann_file: no such file: {path}. A test '
                                            f'will need it.')
            elif path.endswith('.json') and is_coco(leaf):
                try:
                    load_coco(path)
                except DataError as error:
                    raise DataError(f'data.test: {error}') from None


def annotation_files(config: ConfigDict) -> list[str]:
    """Paths of all annotation files that a data set's config names."""
    found = []
    for leaf in leaf_configs(config):
        paths = leaf.get('ann_file')
        found += [osp.join(leaf.get('data_root') or '', path)
                  for path in (paths if isinstance(paths, (list, tuple)) else [paths])
                  if isinstance(path, str)]
    return found


def is_coco(config: ConfigDict) -> bool:
    """Whether a data set reads its annotations as MMDetection's ``CocoDataset`` does."""
    kind = DATASETS.get(config.get('type'))
    return kind is not None and issubclass(kind, CocoDataset) and \
        kind.load_annotations is CocoDataset.load_annotations


def on_disk(file_client: Optional[dict]) -> bool:
    """Whether mmcv's file client with these settings reads files of a disk.

    Example:
        >>> on_disk(None), on_disk(dict(backend='disk')), on_disk(dict(backend='http'))
        (True, True, False)
    """
    settings = file_client or {}
    return settings.get('backend', 'disk') == 'disk' and not settings.get('prefix')


def leaf_configs(config: ConfigDict) -> list[ConfigDict]:
    """Configs of the data sets inside lists and wrappers."""
    if isinstance(config, (list, tuple)):
        return [leaf for inner in config for leaf in leaf_configs(inner)]
    if 'datasets' in config:
        return [leaf for inner in config.datasets for leaf in leaf_configs(inner)]
    return leaf_configs(config.dataset) if 'dataset' in config else [config]


def leaf_datasets(dataset: CustomDataset) -> list[CustomDataset]:
    """The data sets inside wrappers."""
    if hasattr(dataset, 'datasets'):
        return [leaf for inner in dataset.datasets for leaf in leaf_datasets(inner)]
    return leaf_datasets(dataset.dataset) if hasattr(dataset, 'dataset') else [dataset]


def check_classes(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if a COCO file lacks classes of the config, or has them in another order.

    MMDetection numbers classes in the order of the file's categories. It would skip a class that
    is missing, and number all classes after it wrongly. If the order differs from the config's,
    the same number means different classes in different data sets, or for the teacher.
    """
    if not isinstance(dataset, CocoDataset):
        return
    named = [category['name'] for category in dataset.coco.dataset['categories']]
    missing = [name for name in dataset.CLASSES if name not in named]
    if missing:
        raise DataError(
            f'{key}: {len(missing)} of {len(dataset.CLASSES)} classes are no categories of '
            f'{dataset.ann_file}: {shorten(missing)}. It has {shorten(named)}; set `classes` of '
            f'every data set to the names to detect.')
    twice = sorted({name for name in dataset.CLASSES if named.count(name) > 1})
    if twice:
        raise DataError(f'{key}: {dataset.ann_file} has several categories called '
                        f'{shorten(twice)}; give each its own name, or all boxes one of them.')
    in_file = [name for name in named if name in dataset.CLASSES]
    if in_file != list(dataset.CLASSES):
        raise DataError(
            f'{key}: `classes` are {shorten(dataset.CLASSES)}, but {dataset.ann_file} lists them '
            f'as {shorten(in_file)}, and MMDetection numbers them in the order of the file. Give '
            f'`classes` of every data set in that order; where files differ in it, put their '
            f'"categories" into one order (ids may stay as they are).')


def check_images(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if the folder, all images, or one of them is missing.

    Only files on a disk are checked: asking another storage for every image would take too long.
    """
    if not len(dataset):
        raise DataError(f'{key}: no image of {dataset.ann_file} can be used; images without boxes '
                        f'of the classes {shorten(dataset.CLASSES)} are left out of training'
                        f'{left_out(dataset)}.')
    loader = image_loader(dataset)
    if loader is None or not on_disk(loader.file_client_args):
        return
    if dataset.img_prefix and not osp.isdir(dataset.img_prefix):
        raise DataError(f'{key}.img_prefix: no such folder: {dataset.img_prefix}')
    folders = defaultdict(set)
    for info in dataset.data_infos:
        names = info['filename']
        for path in names if isinstance(names, list) else [names]:
            folder, name = osp.split(osp.join(dataset.img_prefix or '', path))
            folders[folder].add(name)
    # List each folder once: asking for every file takes minutes on network disks.
    absent = [osp.join(folder, name) for folder, names in folders.items()
              for name in sorted(names - set(os.listdir(folder) if osp.isdir(folder) else ()))]
    if absent:
        raise DataError(f'{key}: {len(absent)} of {len(dataset)} images of {dataset.ann_file} are '
                        f'missing, first {absent[0]}. Set `img_prefix` to their folder.')


def check_boxes(datasets: list[CustomDataset], key: str) -> None:
    """Raise DataError if there is no box at all to be trained on."""
    if not any(dataset.test_mode for dataset in datasets) and not any(
            len(dataset.get_ann_info(index)['bboxes'])
            for dataset in datasets for index in range(len(dataset))):  # ends at the first box
        raise DataError(f'{key}: no box of {datasets[0].ann_file} can be trained on'
                        f'{left_out(datasets[0])}.')


def left_out(dataset: CustomDataset) -> str:
    """Why boxes of a COCO file are not trained on, for messages; empty if nothing is known."""
    if not isinstance(getattr(dataset, 'coco', None), InspectedCOCO):
        return ''
    findings = [str(finding) for finding in dataset.coco.findings if not finding.completed]
    return ''.join(f'; {finding}' for finding in findings)


def image_loader(dataset: CustomDataset) -> Optional[object]:
    """The step of a pipeline that reads images from files; None if it has one of its own."""
    return next((step for step in getattr(dataset.pipeline, 'transforms', ())
                 if isinstance(step, (LoadImageFromFile, LoadMultiChannelImageFromFiles))), None)


def check_annotations(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if annotations lack what the pipeline or MMDetection's formats need.

    Boxes of COCO files were checked when the file was read.
    """
    if isinstance(getattr(dataset, 'coco', None), COCO):
        loads_masks = any(getattr(step, 'with_mask', False)
                          for step in getattr(dataset.pipeline, 'transforms', ()))
        faults = mask_faults(annotation for info in dataset.data_infos
                             for annotation in dataset.coco.imgToAnns[info['id']]
                             if not annotation.get('ignore')) if loads_masks else []
        if faults:
            raise DataError(f'{key}: {dataset.ann_file}: the pipeline loads masks, but '
                            f'{faults[0]}; so have {len(faults) - 1} more. A mask is a list of '
                            f'polygons [x1, y1, x2, y2, x3, y3, ...] or a run-length code.')
    elif isinstance(dataset, XMLDataset) or type(dataset) is CustomDataset:
        for index, info in enumerate(dataset.data_infos):
            try:
                annotation = dataset.get_ann_info(index)
                boxes, labels = annotation['bboxes'], annotation['labels']
                sound = (np.isfinite(boxes).all() and boxes.shape == (len(labels), 4)
                         and set(labels.tolist()) <= set(range(len(dataset.CLASSES or labels))))
                problem = f'bboxes {shorten(boxes.tolist(), 2)}, labels {shorten(labels.tolist())}'
            except Exception as error:
                sound, problem = False, f'{type(error).__name__}: {error}'
            if not sound:
                raise DataError(f'{key}: the annotations of {info["filename"]} in '
                                f'{dataset.ann_file} cannot be used ({problem}).')


def check_teacher_classes(model: nn.Module, dataset: CustomDataset, key: str) -> None:
    """Raise ConfigError if the teacher's checkpoint numbers the data set's classes differently.

    Classes of the teacher that the data set does not name are allowed: they may have been renamed.
    A teacher with more classes than the student must know all of the data set's, in any order.

    Args:
        model: A detector; only a distiller is looked at.
        dataset: Its data set.
        key: Place of the data set in the config, for messages.
    """
    if not isinstance(model, Distiller):
        return
    taught = getattr(model.teacher, 'CLASSES', None) or ()
    classes = list(dataset.CLASSES)
    if model.pair.teacher.num_classes > model.pair.num_classes:
        model.choose_classes(classes)
        return
    if any(name in classes and classes.index(name) != number
           for number, name in enumerate(taught)):
        raise ConfigError(
            f'model.teacher.checkpoint: the teacher knows {shorten(taught)}, in this order, '
            f'{key} has {shorten(classes)}: it would teach one class as another. Put `classes` of '
            f'the data sets and "categories" of their files into the teacher\'s order, or take '
            f'another teacher.')


LOADED_BY = {'gt_masks': 'LoadAnnotations(with_mask=True)',
             'gt_semantic_seg': 'LoadAnnotations(with_seg=True)',
             'proposals': 'LoadProposals, and `proposal_file` of the data set'}


def check_ground_truth(model: nn.Module, config: ConfigDict, key: str) -> None:
    """Raise ConfigError if a pipeline does not collect what a distiller's student trains on.

    Args:
        model: A detector; only a distiller's student is looked at.
        config: Config of the data set, possibly of a wrapper around others.
        key: Its place in the config, for messages.
    """
    if not isinstance(model, Distiller):
        return
    entry = config
    while 'pipeline' not in entry and ('dataset' in entry or 'datasets' in entry):
        entry = entry['dataset'] if 'dataset' in entry else entry['datasets'][0]
    collected = [step.get('keys', ()) for step in entry.get('pipeline') or ()
                 if step.get('type') == 'Collect']
    if not collected:
        return
    for name in model.pair.student.ground_truth:
        if name not in collected[-1]:
            raise ConfigError(
                f'{key}.pipeline: student {model.pair.student.name} trains on `{name}`, which is '
                f'not collected: load it by {LOADED_BY[name]}, and list it in `keys` of Collect.')


def check_num_classes(model: nn.Module, dataset: CustomDataset, key: str) -> None:
    """Raise ConfigError if a head and the data set count classes differently.

    Args:
        model: A detector; for a distiller, its student is checked.
        dataset: Its data set.
        key: Place of the data set in the config, for messages.
    """
    detector = model.student if isinstance(model, Distiller) else model
    count = num_classes_of(detector)
    if count is not None and count != len(dataset.CLASSES):
        raise ConfigError(
            f'{type(detector).__name__} detects {count} classes, {key} has {len(dataset.CLASSES)} '
            f'({shorten(dataset.CLASSES)}); set `num_classes` of the heads or `classes` of the '
            f'data sets so that they agree.')


def num_classes_of(detector: nn.Module) -> Optional[int]:
    """Classes that a detector tells apart; None if its head does not say."""
    head = getattr(getattr(detector, 'roi_head', None) or detector, 'bbox_head', None)
    return getattr(head[0] if isinstance(head, nn.ModuleList) else head, 'num_classes', None)
