"""Build the data sets of a config, and check that they are whole and fit the detectors."""

from __future__ import annotations

import os
import os.path as osp
import re
from collections import defaultdict
from typing import Optional

from mmcv import Config, ConfigDict
from mmdet.datasets import CocoDataset, CustomDataset, build_dataset
from torch import nn

from gkd.datasets import prepare_embedded
from gkd.detectors import Distiller
from gkd.errors import ConfigError, DataError
from gkd.running.config import shorten


def prototype_datasets(config: Config) -> list[ConfigDict]:
    """Configs of the data sets that prototypes come from: the training data, as tests see it.

    Wrappers that repeat, balance or mix images are taken off: every image counts once.
    """
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
            leaves.append(ConfigDict({**entry, 'pipeline': config.data.test.pipeline}))
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
    leaves = leaf_configs(config)
    for leaf in leaves:
        path = leaf.get('ann_file')
        if isinstance(path, str):
            prepare_embedded(path)
        if isinstance(path, str) and not osp.exists(osp.join(leaf.get('data_root') or '', path)):
            raise DataError(f'{key}.ann_file: no such file: {path}')
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
    return dataset


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
    """Raise DataError if a COCO file has not the classes of the config, in their order.

    MMDetection numbers classes in the order of the file's categories. It would skip a class that
    is missing, and number all after it wrongly; in another order than the config's, the boxes of
    one data set would be of other classes than those of the next, or than the teacher's.
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
    """Raise DataError if the folder, all images, or one of them is missing."""
    if not len(dataset):
        raise DataError(f'{key}: no image of {dataset.ann_file} can be used; images without boxes '
                        f'of the classes {shorten(dataset.CLASSES)} are left out of training.')
    if dataset.img_prefix and not osp.isdir(dataset.img_prefix):
        raise DataError(f'{key}.img_prefix: no such folder: {dataset.img_prefix}')
    folders = defaultdict(set)
    for info in dataset.data_infos:
        folder, name = osp.split(osp.join(dataset.img_prefix or '', info['filename']))
        folders[folder].add(name)
    # One listing a folder: asking for every file takes minutes on network disks.
    absent = [osp.join(folder, name) for folder, names in folders.items()
              for name in sorted(names - set(os.listdir(folder) if osp.isdir(folder) else ()))]
    if absent:
        raise DataError(f'{key}: {len(absent)} of {len(dataset)} images of {dataset.ann_file} are '
                        f'missing, first {absent[0]}. Set `img_prefix` to their folder.')


def check_teacher_classes(model: nn.Module, dataset: CustomDataset, key: str) -> None:
    """Raise ConfigError if the teacher's checkpoint numbers the data set's classes otherwise.

    Classes that the data set does not name are let through: they may have been renamed.

    Args:
        model: A detector; only a distiller is looked at.
        dataset: Its data set.
        key: Place of the data set in the config, for messages.
    """
    if not isinstance(model, Distiller):
        return
    taught = getattr(model.teacher, 'CLASSES', None) or ()
    classes = list(dataset.CLASSES)
    if any(name in classes and classes.index(name) != number
           for number, name in enumerate(taught)):
        raise ConfigError(
            f'model.teacher.checkpoint: the teacher knows {shorten(taught)}, in this order, '
            f'{key} has {shorten(classes)}: it would teach one class as another. Put `classes` of '
            f'the data sets and "categories" of their files into the teacher\'s order, or take '
            f'another teacher.')


def check_num_classes(model: nn.Module, dataset: CustomDataset, key: str) -> None:
    """Raise ConfigError if a head and the data set count classes differently.

    Args:
        model: A detector; of a distiller the student is looked at.
        dataset: Its data set.
        key: Place of the data set in the config, for messages.
    """
    detector = model.student if isinstance(model, Distiller) else model
    owner = getattr(detector, 'roi_head', None) or detector
    head = getattr(owner, 'bbox_head', None)
    head = head[0] if isinstance(head, nn.ModuleList) else head
    count = getattr(head, 'num_classes', None)
    if count is not None and count != len(dataset.CLASSES):
        raise ConfigError(
            f'{type(detector).__name__} detects {count} classes, {key} has {len(dataset.CLASSES)} '
            f'({shorten(dataset.CLASSES)}); set `num_classes` of the heads or `classes` of the '
            f'data sets so that they agree.')
