"""Evaluate a detector on its test data."""

from __future__ import annotations

import os.path as osp
from typing import Any, Optional, Sequence

import mmcv
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmcv.runner import get_dist_info, wrap_fp16_model
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import build_dataloader
from mmdet.models import build_detector

from gkd.apis.config import build_checked_dataset, check_num_classes, student_config
from gkd.apis.export import student_weights
from gkd.apis.train import training_device
from gkd.compat.checkpoint import load_checkpoint_file, load_strictly
from gkd.errors import CheckpointError, ConfigError


def test(config: Config, checkpoint: str, metrics: Sequence[str] = (), out: Optional[str] = None,
         format_only: bool = False, show_dir: Optional[str] = None,
         show_score_thr: float = 0.3, eval_options: Optional[dict] = None) -> dict[str, Any]:
    """Run a detector on ``data.test``, and evaluate, save or draw what it finds.

    Args:
        config: A distillation config or a plain detector's.
        checkpoint: A checkpoint of the training, or an exported student.
        metrics: Metrics of the data set, such as ``bbox``.
        out: Pickle file to write MMDetection's raw results to.
        format_only: Write the results in the data set's own format instead of evaluating.
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
    config = student_config(config)
    model = build_detector(config.model, train_cfg=config.get('train_cfg'),
                           test_cfg=config.get('test_cfg'))
    load_strictly(model, student_weights(load_checkpoint_file(checkpoint)), checkpoint)
    dataset = build_checked_dataset(config.data.test, 'data.test', dict(test_mode=True))
    check_num_classes(model, dataset, 'data.test')
    model.CLASSES = dataset.CLASSES
    if config.get('fp16') is not None:
        wrap_fp16_model(model)

    device = training_device()
    distributed = torch.distributed.is_initialized()
    loader_config = dict(samples_per_gpu=1, workers_per_gpu=0, shuffle=False)
    loader_config.update(config.data.get('test_dataloader', {}))
    loader = build_dataloader(dataset, dist=distributed, **loader_config)
    device_ids = [device.index] if device.type == 'cuda' else None
    if distributed:
        wrapped = MMDistributedDataParallel(model.to(device), device_ids=device_ids,
                                            broadcast_buffers=False)
        # Collecting through files works without a GPU too.
        results = multi_gpu_test(wrapped, loader, tmpdir='.dist_test')
    else:
        wrapped = MMDataParallel(model.to(device), device_ids=device_ids or [])
        results = single_gpu_test(wrapped, loader, out_dir=show_dir,
                                  show_score_thr=show_score_thr)
    if get_dist_info()[0] > 0:
        return {}
    print()
    if out is not None:
        mmcv.dump(results, out)
    if format_only:
        dataset.format_results(results, **(eval_options or {}))
    return dataset.evaluate(results, metric=list(metrics), **(eval_options or {})) \
        if metrics else {}
