"""Build the data of a config for MMDetection 3 with its evaluators, and check that all fits."""

from __future__ import annotations

import inspect
import os.path as osp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.fileio import get_file_backend
from mmengine.registry import DefaultScope
from torch import nn

from gkd.datasets.checks import check_class_names, check_same_classes, no_box
from gkd.datasets.coco_json import load_coco
from gkd.detectors.entries import name_of, placed
from gkd.engine.evaluators import build_evaluator
from gkd.engine.leaf import Leaf
from gkd.engine.loading import on_disk
from gkd.errors import ConfigError, DataError, naming, unknown_setting
from gkd.frameworks import logger
from gkd.frameworks.mmdet3 import leaf_configs
from gkd.matching import LOADED_BY, trained_on


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
        check_one_metainfo(dataset, leaves, key)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    if leaves and not any(leaf.has_boxes for leaf in leaves):
        raise no_box(leaves[0].dataset.ann_file, leaves[0].findings, leaves[0].key)
    return dataset


def check_one_metainfo(dataset: Any, leaves: Sequence[Leaf], key: str) -> None:
    """Check that all data sets inside of wrappers have the same metadata.

    Args:
        dataset: The data set with its wrappers.
        leaves: Those inside.
        key: Place of ``dataset`` in the config, for messages.

    Raises:
        ConfigError: They differ in something that MMDetection does not ignore; it would then keep
            a list, which most of it cannot read.
        DataError: They number classes differently.
    """
    metainfos = [leaf.dataset.metainfo for leaf in leaves]
    with_classes = [(metainfo['classes'], leaf.key) for metainfo, leaf in zip(metainfos, leaves)
                    if metainfo.get('classes')]
    for classes, place in with_classes[1:]:
        check_same_classes(classes, place, *with_classes[0])
    if isinstance(getattr(dataset, 'metainfo', None), list):
        first = metainfos[0]
        names = sorted({name for metainfo in metainfos for name in metainfo
                        if metainfo[name] != first.get(name)}
                       | {name for metainfo in metainfos
                          for name in first.keys() - metainfo.keys()})
        raise ConfigError(f'{key}: the data sets in it differ in {", ".join(names)} of their '
                          f'`metainfo`. Give all the same, or ConcatDataset '
                          f'ignore_keys={names}.')


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
    check_storages(entry, key)
    dataset = build_named({**entry, 'lazy_init': True}, key)
    leaf = Leaf(dataset, key)
    leaf.read()
    leaves.append(leaf)
    return built(dataset)


def check_storages(entry: Any, key: str) -> None:
    """Raise ConfigError if a storage that a part of a config reads from cannot be used.

    Args:
        entry: The part, such as a data set with its pipeline.
        key: Its place, for messages.
    """
    for place, inner in placed(entry, key):
        storage = inner.get('backend_args')
        if storage:
            with naming(f'{place}.backend_args = {dict(storage)}'):
                get_file_backend(backend_args=storage)


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
            unknown = unknown_setting(error)
            if unknown not in entry:
                raise
            raise ConfigError(f'{key}.{unknown}: {name_of(entry["type"])} has no such '
                              f'setting.') from error
        except RuntimeError as error:  # so MMDetection refuses what was a setting once
            raise ConfigError(f'{key}: {error}') from error


def check_val_classes(data: dict[str, Part]) -> None:
    """Raise DataError if a training validates on other classes than it trains on.

    Args:
        data: By part; only a training with an evaluation is looked at.
    """
    classes = [(known['classes'], f'{name}_dataloader.dataset') for name in ('val', 'train')
               if name in data
               for known in [getattr(data[name].dataset, 'metainfo', {})] if known.get('classes')]
    if len(classes) == 2:
        check_same_classes(*classes[0], *classes[1])


def check_test_data(config: Config) -> None:
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
    """Raise ConfigError if no pipeline loads what a detector trains on.

    Args:
        model: A detector; for a distiller, its student is looked at.
        config: Config of the data set, possibly of a wrapper around others.
        key: Its place in the config, for messages.
    """
    name, needed = trained_on(model)
    steps = pipeline_steps(config)
    # That of BoxInst makes masks of boxes and colours.
    makes_masks = type(model.data_preprocessor).__name__ == 'BoxInstDataPreprocessor'
    loaded = {'text': any('text' in (step.get('meta_keys') or ()) for step in steps),
              'pairwise_masks': makes_masks,
              'gt_masks': makes_masks or any(loads(step, 'with_mask') for step in steps),
              'gt_semantic_seg': any(loads(step, 'with_seg') for step in steps),
              'proposals': any(name_of(step.get('type')) == 'LoadProposals' for step in steps)}
    for part in needed:
        if not loaded[part]:
            raise ConfigError(f'{key}.pipeline: {name} trains on `{part}`, which is not loaded: '
                              f'load it by {LOADED_BY[part]}.')


def pipeline_steps(dataset: ConfigDict) -> list[ConfigDict]:
    """Steps of the pipelines of a data set, of wrappers around it too.

    Args:
        dataset: Config of the data set, possibly of a wrapper around others.
    """
    inner = [dataset.dataset] if 'dataset' in dataset else dataset.get('datasets') or []
    return [*(dataset.get('pipeline') or ()),
            *(step for entry in inner for step in pipeline_steps(entry))]


def loads(step: dict, part: str) -> bool:
    """Whether a step of a pipeline loads a part: as it says, else as its class does by default.

    Args:
        step: Its config.
        part: The setting, such as ``with_mask``, which ``LoadPanopticAnnotations`` has on.
    """
    if part in step:
        return bool(step[part])
    kind = step.get('type')
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    setting = inspect.signature(kind).parameters.get(part) if isinstance(kind, type) else None
    return setting is not None and setting.default is True
