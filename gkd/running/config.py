"""Read a config and check that what it names exists and fits together."""

from __future__ import annotations

import inspect
import os
import os.path as osp
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, Optional

from mmcv import Config, ConfigDict
from mmdet.datasets import CocoDataset, CustomDataset, build_dataset
from mmdet.models import build_detector
from mmdet.models.detectors import BaseDetector
from mmdet.utils import compat_cfg, replace_cfg_vals, update_data_root
from torch import nn

from gkd.datasets import prepare_embedded
from gkd.detectors import Distiller
from gkd.detectors.source import DetectorSource, find_file, read_config
from gkd.errors import ConfigError, DataError, GKDError


def load_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config file.

    Args:
        path: The file, found as :class:`~gkd.detectors.source.DetectorSource` finds a
            detector's. A config is Python and is run: take it from people you trust.
        options: Settings that replace the file's, by dotted name, as from ``--cfg-options``.

    Returns:
        The config, in today's form of MMDetection 2.x.

    Raises:
        ConfigError: The file does not exist or cannot be read, or an option names no setting.
    """
    found = find_file(path)
    if found is None:
        raise ConfigError(f'no such config file: {path}')
    config = read_config(found)
    try:
        config = replace_cfg_vals(config)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f'config {path}: cannot fill in ${{...}}: {error}') from error
    try:
        config.merge_from_dict(options or {})
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise ConfigError(f'--cfg-options {options}: {error}') from None
    for key in ('model', 'data'):
        if key not in config:
            raise ConfigError(f'config {path} has no `{key}`; it must describe a detector '
                              f'(`model`) and its data sets (`data`).')
    update_data_root(config)
    try:
        return compat_cfg(config)
    except (AttributeError, KeyError, AssertionError) as error:
        raise ConfigError(f'config {path}: {error}') from None


def student_config(config: Config) -> Config:
    """The config to test with: a distillation config's own student, any other config as it is."""
    if config.model.type != Distiller.__name__:
        return config
    config = Config(config._cfg_dict.to_dict(), filename=config.filename)
    config.model = DetectorSource.parse(config.model.student, 'model.student').model_config()
    return config


def build_model(config: Config) -> BaseDetector:
    """Build ``config.model``.

    Raises:
        ConfigError: MMDetection cannot build it.
    """
    try:
        return build_detector(config.model, train_cfg=config.get('train_cfg'),
                              test_cfg=config.get('test_cfg'))
    except GKDError:
        raise
    except Exception as error:
        raise ConfigError(f'`model` of {config.filename} cannot be built: '
                          f'{type(error).__name__}: {error}') from error


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


def check_metrics(model: BaseDetector, dataset: CustomDataset, metrics: Sequence[str],
                  key: str) -> None:
    """Raise ConfigError for a metric that a COCO data set lacks, before hours of detection.

    Args:
        model: The detector; of a distiller the student is looked at.
        dataset: The data set that would be evaluated.
        metrics: Names of metrics.
        key: Where they were asked for, for messages.
    """
    if not isinstance(dataset, CocoDataset):
        return
    detector = model.student if isinstance(model, Distiller) else model
    known = ['bbox', 'proposal', 'proposal_fast'] + ['segm'] * detector.with_mask
    unknown = [metric for metric in metrics if metric not in known]
    if unknown:
        raise ConfigError(f'{key} {" ".join(unknown)}: {type(detector).__name__} on '
                          f'{type(dataset).__name__} is measured by {", ".join(known)}.')


def check_options(function: Callable, options: Iterable[str], key: str) -> None:
    """Raise ConfigError for options that a data set's function does not take.

    Args:
        function: Its ``evaluate`` or ``format_results``.
        options: Names of options.
        key: Where they were given, for messages.
    """
    known = inspect.signature(function).parameters.keys() - {'results', 'metric'}
    unknown = set(options) - known
    if unknown and 'kwargs' not in known:
        raise ConfigError(f'{key} {", ".join(sorted(unknown))}: unknown; known are '
                          f'{", ".join(sorted(known))}.')


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Turn what MMCV raises for a wrong setting into a ConfigError that names the key."""
    try:
        yield
    except GKDError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ConfigError(f'{key}: {type(error).__name__}: {error}') from error


def shorten(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    listed = ', '.join(map(str, names[:most]))
    return listed if len(names) <= most else f'{listed} and {len(names) - most} more'
