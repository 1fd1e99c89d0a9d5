"""Evaluate a detector on its test data."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, Optional

import mmcv
import torch
from mmcv import Config
from mmcv.runner import get_dist_info, wrap_fp16_model
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import CityscapesDataset, CocoDataset, CustomDataset, build_dataloader
from mmdet.datasets.pipelines import Collect
from torch import nn
from torch.utils.data import Dataset

from gkd.commands.layout import place
from gkd.compat.checkpoint import check_is_file
from gkd.compat.wrapper import unwrap
from gkd.datasets.images import PictureFiles
from gkd.errors import ConfigError, naming
from gkd.files import check_writable, written_whole
from gkd.matching import check_num_classes, check_tested_classes
from gkd.running.cityscapes import check_written
from gkd.running.config import student_config
from gkd.running.console import open_logger
from gkd.running.data import (
    build_evaluated_dataset,
    leaf_datasets,
    loader_settings,
)
from gkd.running.device import use_device, wrap
from gkd.running.evaluation import check_metrics, check_options
from gkd.running.export import load_detector
from gkd.running.trial import try_evaluation
from gkd.watching import watched


def test(config: Config, checkpoint: str, metrics: Sequence[str] = (), out: Optional[str] = None,
         format_only: bool = False, show_dir: Optional[str] = None,
         show_score_thr: float = 0.3, eval_options: Optional[dict] = None) -> dict[str, Any]:
    """Run a detector on ``data.test``, and evaluate, save or draw what it finds.

    Args:
        config: A distillation config or a plain detector's.
        checkpoint: A checkpoint of the training, or an exported student.
        metrics: Metrics of the data set, such as ``bbox``.
        out: Pickle file to write MMDetection's raw results to.
        format_only: Write the results in the data set's own format instead of evaluating: for COCO
            ``results.bbox.json`` beside the checkpoint, unless ``eval_options`` say
            ``jsonfile_prefix``; for Cityscapes masks in the folder ``results`` there, unless they
            say ``txtfile_prefix``, or ``jsonfile_prefix`` for COCO's format.
        show_dir: Folder to draw detections into.
        show_score_thr: Scores below are not drawn.
        eval_options: Passed on to the data set's ``evaluate`` or ``format_results``.

    Returns:
        The metrics, empty if none were asked for and on other processes than the first.

    Raises:
        GKDError: Config, checkpoint or data are missing or do not fit.
    """
    check_request(checkpoint, out, show_dir)
    with naming('log_level'):
        open_logger(config.get('log_level', 'INFO'))
    config = student_config(config)
    model = load_detector(config, checkpoint)
    dataset = build_evaluated_dataset(config, 'test')
    loader_config = loader_settings(config, 'test')
    check_num_classes(model, dataset.CLASSES, 'data.test')
    check_tested_classes(model.CLASSES, dataset.CLASSES, checkpoint, 'data.test')
    model.CLASSES = dataset.CLASSES
    options = dict(eval_options or {})
    write = writer(model, dataset, options, checkpoint) if format_only else None
    check_metrics(model, dataset, metrics, '--eval')
    check_options(write or leaf_datasets(dataset)[0].evaluate, options, '--eval-options')
    device = use_device()
    if config.get('fp16') is not None and device.type == 'cuda':
        wrap_fp16_model(model)
    if metrics:
        try_evaluation(model, device, dataset, loader_config,
                       dict(metric=list(metrics), **options), 'data.test',
                       '--eval or --eval-options')
    wrapped = wrap(place(model, device, config), device)
    results = detect(wrapped, dataset, loader_config, show_dir, show_score_thr)
    if get_dist_info()[0] > 0:
        return {}
    if out is not None:
        with written_whole(out) as file:
            mmcv.dump(results, file, file_format='pkl')
        print(f'wrote {out}')
    if show_dir is not None:
        print(f'drew {len(results)} images into {show_dir}')
    if write is not None:
        files, _ = write(results, **options)
        print('wrote', *sorted(set(files.values() if isinstance(files, dict) else files)))
    return dataset.evaluate(results, metric=list(metrics), **options) if metrics else {}


def check_request(checkpoint: str, out: Optional[str], show_dir: Optional[str]) -> None:
    """Raise GKDError for what cannot be done, before anything is built.

    Args:
        checkpoint: As in :func:`test`.
        out: Likewise.
        show_dir: Likewise.
    """
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out}: must end in .pkl or .pickle')
    if out is not None:
        check_writable(out)
    check_is_file(checkpoint)
    if torch.distributed.is_initialized() and show_dir is not None:
        raise ConfigError('--show-dir draws in one process only; leave the number of GPUs out.')


def writer(model: nn.Module, dataset: Dataset, options: dict, checkpoint: str) -> Callable:
    """What writes results in the data set's own format.

    Args:
        model: The detector.
        dataset: That of ``data.test``.
        options: What the user gave; it gets the place of the files if it names none. Without one,
            MMDetection writes into a folder that it deletes at once.
        checkpoint: As in :func:`test`.

    Raises:
        ConfigError: The data set has no format, or the results have no such form.
    """
    if hasattr(dataset, 'datasets'):
        raise ConfigError(f'--format-only writes one data set, data.test has '
                          f'{len(leaf_datasets(dataset))}; name one with --cfg-options '
                          f'data.test.ann_file=FILE.')
    write = getattr(dataset, 'format_results', None)
    if write is None or write.__func__ is CustomDataset.format_results:
        raise ConfigError(f'--format-only: {type(dataset).__name__} has no format for results. '
                          f'--out FILE.pkl writes them as MMDetection holds them.')
    prefix = osp.join(osp.dirname(checkpoint), 'results')
    if isinstance(dataset, CityscapesDataset):
        if 'jsonfile_prefix' in options:
            return partial(CocoDataset.format_results, dataset)
        check_written(model, '--format-only')
        options.setdefault('txtfile_prefix', prefix)
    elif isinstance(dataset, CocoDataset):
        options.setdefault('jsonfile_prefix', prefix)
    return write


def detect(model: nn.Module, dataset: Dataset, loader_config: dict, show_dir: Optional[str],
           show_score_thr: float) -> Optional[list]:
    """MMDetection's raw results, in the first process those of all.

    Args:
        model: The detector, wrapped for its device.
        dataset: That of ``data.test``.
        loader_config: Settings of its loader.
        show_dir: As in :func:`test`.
        show_score_thr: Likewise.
    """
    distributed = torch.distributed.is_initialized()
    with naming('data.test_dataloader'):
        loader = build_dataloader(dataset, dist=distributed, **loader_config)
    if distributed:
        return multi_gpu_test(model, loader)
    if show_dir is not None:
        for leaf in leaf_datasets(dataset):
            collect_names(leaf.pipeline)
    files = PictureFiles(show_dir or '')

    def draw(method: Callable, *args: Any, out_file: str, **settings: Any) -> Any:
        return method(*args, out_file=files(out_file), **settings)

    with watched(unwrap(model), 'show_result', draw):
        return single_gpu_test(model, loader, out_dir=show_dir, show_score_thr=show_score_thr)


def collect_names(step: Any) -> None:
    """Let a pipeline collect images' names, by which drawings are saved; CornerNet's does not.

    Args:
        step: The pipeline, changed in place, or a part of it.
    """
    if isinstance(step, Collect):
        step.meta_keys = tuple(dict.fromkeys([*step.meta_keys, 'ori_filename']))
    inner = getattr(step, 'transforms', None) or ()
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        collect_names(part)
