"""Evaluate a detector on its test data."""

from __future__ import annotations

import os.path as osp
import tempfile
from collections.abc import Sequence
from typing import Any, Optional

import mmcv
import torch
from mmcv import Config
from mmcv.runner import get_dist_info, wrap_fp16_model
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import CocoDataset, build_dataloader

from gkd.commands.layout import place
from gkd.errors import CheckpointError, ConfigError
from gkd.files import written_whole
from gkd.running.config import naming, student_config
from gkd.running.console import open_logger
from gkd.running.data import (
    build_evaluated_dataset,
    check_num_classes,
    leaf_datasets,
    loader_settings,
)
from gkd.running.device import use_device, wrap
from gkd.running.evaluation import check_metrics, check_options
from gkd.running.export import load_detector
from gkd.running.trial import try_evaluation


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
            ``jsonfile_prefix``.
        show_dir: Folder to draw detections into.
        show_score_thr: Scores below are not drawn.
        eval_options: Passed on to the data set's ``evaluate`` or ``format_results``.

    Returns:
        The metrics, empty if none were asked for and on other processes than the first.

    Raises:
        GKDError: Config, checkpoint or data are missing or do not fit.
    """
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out}: must end in .pkl or .pickle')
    if not osp.isfile(checkpoint):
        raise CheckpointError(f'no such checkpoint: {checkpoint}')
    distributed = torch.distributed.is_initialized()
    if distributed and show_dir is not None:
        raise ConfigError('--show-dir draws in one process only; leave the number of GPUs out.')
    open_logger(config.get('log_level', 'INFO'))
    config = student_config(config)
    model = load_detector(config, checkpoint)
    dataset = build_evaluated_dataset(config, 'test')
    loader_config = loader_settings(config, 'test')
    check_num_classes(model, dataset, 'data.test')
    model.CLASSES = dataset.CLASSES
    options = dict(eval_options or {})
    parts = leaf_datasets(dataset)
    if format_only and not hasattr(dataset, 'format_results'):
        raise ConfigError(f'--format-only writes one data set, data.test has {len(parts)}; name '
                          f'one with --cfg-options data.test.ann_file=FILE.')
    if format_only and isinstance(dataset, CocoDataset):
        # Without a prefix MMDetection writes into a folder that it deletes at once.
        options.setdefault('jsonfile_prefix', osp.join(osp.dirname(checkpoint), 'results'))
    check_metrics(model, dataset, metrics, '--eval')
    check_options(dataset.format_results if format_only else parts[0].evaluate, options,
                  '--eval-options')
    device = use_device()
    if config.get('fp16') is not None and device.type == 'cuda':
        wrap_fp16_model(model)
    if metrics:
        try_evaluation(model, device, dataset, loader_config,
                       dict(metric=list(metrics), **options), 'data.test')
    with naming('data.test_dataloader'):
        loader = build_dataloader(dataset, dist=distributed, **loader_config)
    wrapped = wrap(place(model, device, config), device)
    if distributed:
        results = multi_gpu_test(wrapped, loader, tmpdir=shared_folder(osp.dirname(checkpoint)))
    else:
        results = single_gpu_test(wrapped, loader, out_dir=show_dir,
                                  show_score_thr=show_score_thr)
    if get_dist_info()[0] > 0:
        return {}
    if out is not None:
        with written_whole(out) as file:
            mmcv.dump(results, file, file_format='pkl')
        print(f'wrote {out}')
    if show_dir is not None:
        print(f'drew {len(results)} images into {show_dir}')
    if format_only:
        files, _ = dataset.format_results(results, **options)
        print('wrote', *(sorted(set(files.values())) if isinstance(files, dict) else [files]))
    return dataset.evaluate(results, metric=list(metrics), **options) if metrics else {}


def shared_folder(parent: str) -> str:
    """A new folder that all processes know, to collect results in: works without a GPU too."""
    name = [tempfile.mkdtemp(prefix='.results_', dir=parent or '.')
            if get_dist_info()[0] == 0 else None]
    torch.distributed.broadcast_object_list(name)
    return name[0]
