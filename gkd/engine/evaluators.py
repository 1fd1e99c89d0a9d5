"""Build the evaluators of a config for MMDetection 3, and check that they fit the data."""

from __future__ import annotations

import os.path as osp
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import MultiDatasetsEvaluator
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR

from gkd.datasets import prepare_embedded
from gkd.datasets.checks import check_categories
from gkd.engine.leaf import category_names
from gkd.engine.loading import on_disk
from gkd.errors import ConfigError, DataError, naming
from gkd.frameworks import logger


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
        for metric, measured in zip(evaluator.metrics, measured_datasets(evaluator, dataset, key)):
            coco = getattr(metric, '_coco_api', None)
            if isinstance(coco, COCO):
                check_evaluated(measured, coco, part, ', '.join(files.values()))
    return evaluator


def measured_datasets(evaluator: Evaluator, dataset: Any, key: str) -> Sequence[Any]:
    """The data set that each metric of an evaluator measures detections in.

    Args:
        evaluator: MMDetection's ``MultiDatasetsEvaluator`` gives each metric a data set of a
            ``ConcatDataset``, others give each the whole.
        dataset: The whole.
        key: Place of the evaluator in the config, for messages.

    Raises:
        ConfigError: There are not as many data sets as metrics; some would not be measured.
    """
    if not isinstance(evaluator, MultiDatasetsEvaluator):
        return [dataset] * len(evaluator.metrics)
    datasets = getattr(dataset, 'datasets', [dataset])
    if not len(datasets) == len(evaluator.metrics) == len(evaluator.dataset_prefixes):
        raise ConfigError(
            f'{key}: a MultiDatasetsEvaluator takes a metric and a prefix for each data set of a '
            f'ConcatDataset. There are {len(datasets)} data sets, {len(evaluator.metrics)} '
            f'`metrics` and {len(evaluator.dataset_prefixes)} `dataset_prefixes`.')
    return datasets


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

    The log counts images that only the annotations have: nothing will be detected in them.

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
