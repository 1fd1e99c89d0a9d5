"""Train a detector: a distiller, a teacher or a plain student."""

from __future__ import annotations

import json
import os.path as osp
import platform
import time
from typing import Optional

import mmcv
import mmdet
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmcv.runner import (
    HOOKS,
    DistSamplerSeedHook,
    Fp16OptimizerHook,
    Hook,
    OptimizerHook,
    build_optimizer,
    build_runner,
    get_dist_info,
)
from mmdet.apis import set_random_seed
from mmdet.apis.train import auto_scale_lr
from mmdet.core import DistEvalHook, EvalHook
from mmdet.datasets import build_dataloader
from mmdet.models import build_detector
from mmdet.utils import find_latest_checkpoint, get_root_logger
from torch import nn

import gkd
from gkd.apis.config import build_checked_dataset, check_num_classes, prototype_datasets
from gkd.apis.files import write_atomically
from gkd.detectors import Distiller
from gkd.errors import CheckpointError


def train(config: Config, resume: str = 'auto', validate: bool = True) -> dict[str, float]:
    """Train what ``config.model`` describes.

    In a process group that is initialised, all processes call this together.

    Args:
        config: A config from :func:`gkd.apis.load_config`, with ``work_dir`` set.
        resume: ``'auto'`` goes on from the last checkpoint in ``work_dir`` if there is one,
            ``'never'`` starts anew, a path goes on from that checkpoint.
        validate: Evaluate as ``config.evaluation`` says.

    Returns:
        The metrics of the last evaluation, empty without one.

    Raises:
        GKDError: Something in the config, the data or the checkpoints is wrong.
    """
    rank, world_size = get_dist_info()
    distributed = torch.distributed.is_initialized()
    device = training_device()
    mmcv.mkdir_or_exist(osp.abspath(config.work_dir))
    timestamp = time.strftime('%Y%m%d_%H%M%S')
    logger = get_root_logger(log_file=osp.join(config.work_dir, f'{timestamp}.log'),
                             log_level=config.log_level)
    logger.info(f'gkd {gkd.__version__}, torch {torch.__version__}, mmdet {mmdet.__version__}, '
                f'Python {platform.python_version()}, {world_size} process(es) on {device.type}')

    set_random_seed(config.seed, deterministic=config.get('deterministic', False))
    model = build_detector(config.model, train_cfg=config.get('train_cfg'),
                           test_cfg=config.get('test_cfg'))
    model.init_weights()
    train_set = build_checked_dataset(config.data.train, 'data.train')
    check_num_classes(model, train_set, 'data.train')
    model.CLASSES = train_set.CLASSES
    if isinstance(model, Distiller) and not any(
            hook['type'] == 'PrototypeHook' for hook in config.get('custom_hooks') or ()):
        config.custom_hooks = [*(config.get('custom_hooks') or ()),
                               dict(type='PrototypeHook', datasets=prototype_datasets(config))]

    loader = build_dataloader(train_set, dist=distributed, seed=config.seed,
                              num_gpus=1, runner_type=config.runner.type,
                              **config.data.get('train_dataloader', {}))
    config.gpu_ids = range(world_size)
    auto_scale_lr(config, distributed, logger)
    wrapped = wrap(model.to(device), device, config)
    runner = build_runner(config.runner, default_args=dict(
        model=wrapped, optimizer=build_optimizer(wrapped, config.optimizer),
        work_dir=config.work_dir, logger=logger,
        meta=dict(config=config.pretty_text, seed=config.seed, gkd_version=gkd.__version__,
                  mmdet_version=mmdet.__version__, CLASSES=train_set.CLASSES)))
    runner.timestamp = timestamp
    if rank == 0:
        write_atomically(osp.join(config.work_dir, osp.basename(config.filename or 'config.py')),
                         config.pretty_text)

    runner.register_training_hooks(
        config.lr_config, optimizer_hook(config, distributed), config.get('checkpoint_config'),
        config.get('log_config'), config.get('momentum_config'),
        custom_hooks_config=config.get('custom_hooks'))
    if distributed:
        runner.register_hook(DistSamplerSeedHook())
    recorder = EvaluationRecorder()
    if validate:
        runner.register_hook(evaluation_hook(config, distributed), priority='LOW')
        runner.register_hook(recorder, priority='LOW')

    checkpoint = find_checkpoint(resume, config.work_dir)
    if checkpoint is not None:
        runner.resume(checkpoint, map_location=str(device))
    runner.run([loader], config.get('workflow', [('train', 1)]))
    return recorder.metrics


def training_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')


def wrap(model: nn.Module, device: torch.device, config: Config) -> nn.Module:
    """Wrap a model for data containers and, in a process group, for gradient averaging."""
    device_ids = [device.index] if device.type == 'cuda' else None
    if torch.distributed.is_initialized():
        return MMDistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False,
            find_unused_parameters=config.get('find_unused_parameters', False))
    return MMDataParallel(model, device_ids=device_ids or [])


def optimizer_hook(config: Config, distributed: bool):
    """The optimiser step, in mixed precision if the config asks for it."""
    settings = config.get('optimizer_config') or {}
    if config.get('fp16') is not None:
        return Fp16OptimizerHook(**settings, **config.fp16, distributed=distributed)
    return settings if 'type' in settings else OptimizerHook(**settings)


def evaluation_hook(config: Config, distributed: bool) -> EvalHook:
    """Evaluate on ``data.val`` as the config's ``evaluation`` says."""
    dataset = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True))
    loader_config = dict(samples_per_gpu=1, workers_per_gpu=0, shuffle=False)
    loader_config.update(config.data.get('val_dataloader', {}))
    loader = build_dataloader(dataset, dist=distributed, **loader_config)
    settings = dict(by_epoch=True, **config.get('evaluation', {}))
    if not distributed:
        return EvalHook(loader, **settings)
    # Collecting through files works without a GPU too.
    return DistEvalHook(loader, tmpdir=osp.join(config.work_dir, '.eval_hook'), **settings)


@HOOKS.register_module()
class EvaluationRecorder(Hook):
    """Keep the metrics of every evaluation in ``WORK_DIR/evaluation.json``.

    Attributes:
        metrics: Those of the last evaluation.
    """

    def __init__(self):
        self.metrics: dict[str, float] = {}

    def after_train_epoch(self, runner) -> None:
        """Pick up what the evaluation hook, which runs just before, has put out."""
        found = {name: float(value) for name, value in runner.log_buffer.output.items()
                 if 'mAP' in name and isinstance(value, (int, float))}
        if not found:
            return
        self.metrics = found
        if runner.rank == 0:
            path = osp.join(runner.work_dir, 'evaluation.json')
            history = mmcv.load(path) if osp.isfile(path) else {}
            history[str(runner.epoch + 1)] = found
            write_atomically(path, json.dumps(history, indent=2))


def find_checkpoint(resume: str, work_dir: str) -> Optional[str]:
    """The checkpoint to go on from, None to start anew.

    Raises:
        CheckpointError: A named checkpoint does not exist.
    """
    if resume == 'never':
        return None
    if resume == 'auto':
        return find_latest_checkpoint(work_dir)
    if not osp.isfile(resume):
        raise CheckpointError(f'--resume: no such file: {resume}')
    return resume
