"""Build the data sets of a config, and check that they are whole and fit the detectors."""

from __future__ import annotations

import copy
import os.path as osp
import re
from typing import Any, Optional

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
from mmdet.datasets.pipelines import Compose, LoadImageFromFile, LoadMultiChannelImageFromFiles
from torch import nn
from torch.utils.data import Dataset

from gkd.compat.coco import InspectedCOCO
from gkd.datasets import prepare_embedded
from gkd.datasets.checks import (
    check_categories,
    check_class_names,
    check_files_exist,
    check_instances,
    check_same_classes,
    no_box,
    no_image,
    unusable,
    warn_of_flat_boxes,
)
from gkd.datasets.coco_json import load_coco
from gkd.datasets.inspection import Finding
from gkd.detectors.entries import placed
from gkd.detectors.images import pipeline_of
from gkd.errors import ConfigError, DataError, naming, shorten, unknown_setting, why_not_built
from gkd.frameworks.open_images import named_image
from gkd.matching import LOADED_BY, trained_on
from gkd.running.loading import check_loaded


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
        ConfigError: A setting is unknown.
        DataError: Annotations or images are missing or broken.
    """
    with naming(key):
        leaves = leaf_configs(config)
    if not leaves:
        raise DataError(f'{key} = {config!r} names no data set.')
    for leaf in leaves:
        check_settings(leaf, key)
    try:
        dataset = build_dataset(config, default_args)
    except DataError as error:  # mmcv puts the name of the class in front
        raise DataError(f'{key}: {re.sub("^[A-Za-z]+: ", "", str(error))}') from None
    except Exception as error:
        unknown = unknown_setting(error)
        for leaf in leaves:
            if unknown in leaf:
                raise ConfigError(f'{key}.{unknown}: {leaf.get("type")} has no such setting.'
                                  ) from error
        check_steps(config, key)
        if isinstance(error, ImportError):
            raise ConfigError(f'{key}: {error}') from error
        raise DataError(
            f'{key}: cannot read {shorten([leaf.get("ann_file") for leaf in leaves])} as '
            f'{leaves[0].get("type")}: {type(error).__name__}: {error}. CocoDataset needs a JSON '
            f'file with "images", "annotations" and "categories"; for data of your own in PASCAL '
            f'VOC\'s format, take XMLDataset.') from error
    for leaf in leaf_datasets(dataset):
        check_classes(leaf, key)
        check_same_classes(leaf.CLASSES or (), f'a data set in {key}', dataset.CLASSES or (),
                           'its first one')
        check_images(leaf, key)
        check_annotations(leaf, key)
        check_loaded(leaf, key)
    check_boxes(leaf_datasets(dataset), key)
    return dataset


def check_steps(entry: Any, key: str) -> None:
    """Raise ConfigError for the first step of a pipeline that cannot be built.

    Args:
        entry: Config of a data set with its wrappers, or a part of it.
        key: Its place, for messages.
    """
    for place, inner in placed(entry, key):
        for number, step in enumerate(inner.get('pipeline') or ()):
            try:
                Compose([step])
            except Exception as error:
                reason = why_not_built(error).rstrip('.')
                raise ConfigError(f'{place}.pipeline.{number}: {reason}. Mend this step, or leave '
                                  f'it out.') from error


def loader_settings(config: Config, part: str) -> dict:
    """Settings of the loader of ``data.val`` or ``data.test``, one image at a time by default.

    Raises:
        ConfigError: The number of images per batch is not valid.
    """
    settings = {'samples_per_gpu': 1, 'workers_per_gpu': 0, 'shuffle': False,
                **config.data.get(f'{part}_dataloader', {})}
    check_batch(settings['samples_per_gpu'], part)
    return settings


def check_batch(images: Any, part: str) -> None:
    """Raise ConfigError unless a loader's number of images can be one.

    Args:
        images: The setting.
        part: ``'train'``, ``'val'`` or ``'test'``.
    """
    if not isinstance(images, int) or images < 1:
        raise ConfigError(f'data.{part}_dataloader.samples_per_gpu = {images!r}: must be a whole '
                          f'number from 1 on.')


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
    check_class_names(entry.get('classes'), f'{key}.classes')
    proposals = entry.get('proposal_file')
    if proposals and on_disk(entry.get('file_client_args')) and not osp.exists(
            osp.join(entry.get('data_root') or '', proposals)):
        raise DataError(f'{key}.proposal_file: no such file: {proposals}')


def check_test_data(config: Config) -> None:
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
        >>> on_disk(None), on_disk(dict(backend='disk'))
        (True, True)
        >>> on_disk(dict(backend='http')), on_disk(dict(prefix='s3'))
        (False, False)
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
    """Raise DataError if a COCO file and the config name the classes differently."""
    if isinstance(dataset, CocoDataset):
        check_categories(dataset.CLASSES, [category['name'] for category in
                                           dataset.coco.dataset['categories']],
                         dataset.ann_file, key)


def check_images(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if the folder, all images, or one of them is missing.

    Only files on a disk are checked: asking another storage for every image would take too long.
    """
    if not len(dataset):
        raise no_image(dataset.ann_file, dataset.CLASSES, findings_of(dataset), key)
    loader = image_loader(dataset)
    if loader is None or not on_disk(loader.file_client_args):
        return
    if dataset.img_prefix and not osp.isdir(dataset.img_prefix):
        raise DataError(f'{key}.img_prefix: no such folder: {dataset.img_prefix}')
    names = [named_image(info)['filename'] for info in dataset.data_infos]
    check_files_exist([osp.join(dataset.img_prefix or '', path) for name in names
                       for path in (name if isinstance(name, list) else [name])],
                      dataset.ann_file, key)


def check_boxes(datasets: list[CustomDataset], key: str) -> None:
    """Raise DataError if there is no box at all to be trained on."""
    if not any(dataset.test_mode for dataset in datasets) and not any(
            len(read_boxes(dataset, index, key)['bboxes'])
            for dataset in datasets for index in range(len(dataset))):  # ends at the first box
        raise no_box(datasets[0].ann_file, findings_of(datasets[0]), key)


def read_boxes(dataset: CustomDataset, index: int, key: str) -> dict:
    """What a data set tells of an image's boxes.

    Raises:
        DataError: It cannot read them; with the image and the reason.
    """
    try:
        return dataset.get_ann_info(index)
    except Exception as error:
        raise unusable(named_image(dataset.data_infos[index])['filename'], dataset.ann_file,
                       f'{type(error).__name__}: {error}', key) from None


def findings_of(dataset: CustomDataset) -> list[Finding]:
    """What was found in a COCO file when it was read; nothing of other formats."""
    coco = getattr(dataset, 'coco', None)
    return coco.findings if isinstance(coco, InspectedCOCO) else []


def image_loader(dataset: CustomDataset) -> Optional[object]:
    """The step of a pipeline that reads images from files; None if it has one of its own."""
    return next((step for step in getattr(dataset.pipeline, 'transforms', ())
                 if isinstance(step, (LoadImageFromFile, LoadMultiChannelImageFromFiles))), None)


def check_annotations(dataset: CustomDataset, key: str) -> None:
    """Raise DataError if annotations lack what MMDetection's formats need.

    Boxes of COCO files were checked when the file was read.
    """
    if isinstance(dataset, XMLDataset) or type(dataset) is CustomDataset:
        trained = []
        for index, info in enumerate(dataset.data_infos):
            image = info['filename']
            annotation = read_boxes(dataset, index, key)
            boxes, labels = annotation['bboxes'].tolist(), annotation['labels'].tolist()
            check_instances(boxes, labels, len(dataset.CLASSES or labels), image,
                            dataset.ann_file, key)
            trained += [] if dataset.test_mode else [(info, image, box) for box in boxes]
        warn_of_flat_boxes(trained, dataset.ann_file)


def check_ground_truth(model: nn.Module, config: ConfigDict, key: str) -> None:
    """Raise ConfigError if a pipeline does not collect what a detector trains on.

    Args:
        model: A detector; for a distiller, its student is looked at.
        config: Config of the data set, possibly a list or a wrapper around others.
        key: Its place in the config, for messages.
    """
    name, needed = trained_on(model)
    collected = [step.get('keys', ()) for step in pipeline_of(config)
                 if step.get('type') == 'Collect']
    if not collected:
        return
    for part in needed:
        if part not in collected[-1]:
            raise ConfigError(
                f'{key}.pipeline: {name} trains on `{part}`, which is not collected: load it by '
                f'{LOADED_BY[part]}, and list it in `keys` of Collect.')
