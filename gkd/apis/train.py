"""Train a detector: a distiller, a teacher or a plain student."""

from __future__ import annotations

import inspect
import json
import math
import os
import os.path as osp
import platform
import re
import time
from typing import Optional

import mmcv
import mmdet
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmcv.runner import (
    RUNNERS,
    DistSamplerSeedHook,
    EpochBasedRunner,
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
from mmdet.datasets import CocoDataset, build_dataloader
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gkd
from gkd.apis.allocator import keep_freed_memory
from gkd.apis.config import (
    build_checked_dataset,
    build_model,
    check_metrics,
    check_num_classes,
    check_options,
    naming,
    prototype_datasets,
)
from gkd.apis.console import log_file, open_logger, without_details
from gkd.apis.files import write_atomically
from gkd.detectors import Distiller
from gkd.errors import CheckpointError, ConfigError


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
    if device.type == 'cpu':
        keep_freed_memory()
    check_training(config)
    config.setdefault('seed', 0)
    config.gpu_ids = range(world_size)
    logger = open_logger(config.get('log_level', 'INFO'))

    # All that can be wrong is looked at before anything is written.
    set_random_seed(config.seed, deterministic=config.get('deterministic', False))
    model = build_model(config)
    with without_details():
        model.init_weights()
    train_set = build_checked_dataset(config.data.train, 'data.train')
    check_num_classes(model, train_set, 'data.train')
    model.CLASSES = train_set.CLASSES
    if isinstance(model, Distiller) and not any(
            hook['type'] == 'PrototypeHook' for hook in config.get('custom_hooks') or ()):
        config.custom_hooks = [*(config.get('custom_hooks') or ()),
                               dict(type='PrototypeHook', datasets=prototype_datasets(config))]
    recorder = evaluation = None
    if validate:
        evaluation = evaluation_hook(config, model, distributed)
        recorder = EvaluationRecorder(evaluation)
    checkpoint = find_checkpoint(resume, config)

    with naming('data.train_dataloader'):
        loader = build_dataloader(train_set, dist=distributed, seed=config.seed,
                                  num_gpus=1, runner_type=config.runner.type,
                                  **config.data.get('train_dataloader', {}))
    if config.get('auto_scale_lr'):
        auto_scale_lr(config, distributed, logger)
    wrapped = wrap(model.to(device), device, config.get('find_unused_parameters', False))
    text = config.pretty_text
    with naming('optimizer'):
        optimizer = build_optimizer(wrapped, config.optimizer)
    with naming('runner'):
        runner = build_runner(config.runner, default_args=dict(
            model=wrapped, optimizer=optimizer, logger=logger,
            meta=dict(config=text, seed=config.seed, gkd_version=gkd.__version__,
                      mmdet_version=mmdet.__version__, CLASSES=train_set.CLASSES)))
    runner.timestamp = time.strftime('%Y%m%d_%H%M%S')
    with naming('lr_config, optimizer_config, checkpoint_config, log_config or custom_hooks'):
        runner.register_training_hooks(
            config.lr_config, optimizer_hook(config, distributed),
            config.get('checkpoint_config'), config.get('log_config'),
            config.get('momentum_config'), custom_hooks_config=config.get('custom_hooks'))
    if distributed:
        runner.register_hook(DistSamplerSeedHook())
    if validate:
        runner.register_hook(evaluation, priority='LOW')
        runner.register_hook(recorder, priority='LOW')

    runner.work_dir = osp.abspath(config.work_dir)
    mmcv.mkdir_or_exist(runner.work_dir)
    with log_file(logger, osp.join(config.work_dir, f'{runner.timestamp}.log')):
        logger.info(
            f'gkd {gkd.__version__}, torch {torch.__version__}, mmdet {mmdet.__version__}, '
            f'Python {platform.python_version()}, {world_size} process(es) on {device.type}')
        if checkpoint is not None:
            runner.resume(checkpoint, map_location=str(device))
        elif config.get('load_from'):
            runner.load_checkpoint(config.load_from)
        kept = osp.join(config.work_dir, osp.basename(config.filename or 'config.py'))
        if rank == 0 and osp.abspath(kept) != osp.abspath(config.filename or ''):
            write_atomically(kept, text)
        if checkpoint is not None and runner.epoch >= (runner.max_epochs or math.inf):
            logger.info(f'{checkpoint} is trained for {runner.epoch} epochs already; nothing is '
                        f'left to do. To train anew: --resume never, or another --work-dir.')
        runner.run([loader], [('train', 1)])
    return recorder.metrics if validate else {}


def check_training(config: Config) -> None:
    """Raise ConfigError if a config lacks what training needs."""
    missing = [key for key in ('work_dir', 'optimizer', 'lr_config', 'runner')
               if not config.get(key)]
    missing += [f'data.{key}' for key in ('train', 'val', 'test') if key not in config.data]
    if missing:
        raise ConfigError(f'config {config.filename} cannot be trained: it has no '
                          f'{", ".join(missing)}.')
    weights = config.get('load_from')
    if weights and '://' not in weights and not osp.isfile(weights):
        raise CheckpointError(f'load_from: no such checkpoint: {weights}')
    runner_type = RUNNERS.get(config.runner.get('type'))
    if runner_type is None:
        raise ConfigError(f'runner.type = {config.runner.get("type")!r} is unknown; use '
                          f'EpochBasedRunner.')
    by_epoch = issubclass(runner_type, EpochBasedRunner)
    if config.model.type == Distiller.__name__ and not by_epoch:
        raise ConfigError(f'runner.type = {config.runner.type}: the decay of distillation is '
                          f'counted in epochs; use EpochBasedRunner.')
    length = 'max_epochs' if by_epoch else 'max_iters'
    if config.runner.get(length, 0) < 1:
        raise ConfigError(f'runner.{length} = {config.runner.get(length)}: must be at least 1.')
    workflow = config.get('workflow', [('train', 1)])
    if [mode for mode, _ in workflow] != ['train']:
        raise ConfigError(f'workflow = {workflow}: only [("train", 1)] is supported; '
                          f'`evaluation` evaluates between epochs.')


def training_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')


def wrap(model: nn.Module, device: torch.device, find_unused: bool = False) -> nn.Module:
    """Wrap a model for data containers and, in a process group, for gradient averaging.

    Args:
        model: A model on ``device``.
        device: The GPU of this process, or the CPU.
        find_unused: Whether some parameters may be left without gradients.
    """
    device_ids = [device.index] if device.type == 'cuda' else None
    if torch.distributed.is_initialized():
        # Each process keeps its own batch statistics. Newer torch has renamed the setting.
        known = inspect.signature(DistributedDataParallel).parameters
        keep = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'
        return MMDistributedDataParallel(model, device_ids=device_ids, **{keep: False},
                                         find_unused_parameters=find_unused)
    return MMDataParallel(model, device_ids=device_ids or [])


def optimizer_hook(config: Config, distributed: bool):
    """The optimiser step, in mixed precision if the config asks for it."""
    settings = config.get('optimizer_config') or {}
    if config.get('fp16') is not None:
        return Fp16OptimizerHook(**settings, **config.fp16, distributed=distributed)
    return settings if 'type' in settings else OptimizerHook(**settings)


def evaluation_hook(config: Config, model: nn.Module, distributed: bool) -> EvalHook:
    """Evaluate on ``data.val`` as the config's ``evaluation`` says."""
    dataset = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True))
    check_num_classes(model, dataset, 'data.val')
    loader_config = dict(samples_per_gpu=1, workers_per_gpu=0, shuffle=False)
    loader_config.update(config.data.get('val_dataloader', {}))
    with naming('data.val_dataloader'):
        loader = build_dataloader(dataset, dist=distributed, **loader_config)
    settings = {'by_epoch': True, **config.get('evaluation', {})}
    if distributed:
        # Collecting through files works without a GPU too.
        settings['tmpdir'] = osp.join(config.work_dir, '.eval_hook')
    with naming('evaluation'):
        hook = (DistEvalHook if distributed else EvalHook)(loader, **settings)
    options = dict(hook.eval_kwargs)
    metrics = options.pop('metric', 'bbox')
    check_metrics(model, dataset, [metrics] if isinstance(metrics, str) else metrics,
                  'evaluation.metric')
    check_options(dataset.evaluate, options, 'evaluation:')
    return hook


class EvaluationRecorder(Hook):
    """Keep the metrics of every evaluation in ``WORK_DIR/evaluation.json``.

    Args:
        evaluation: The hook that evaluates.

    Attributes:
        metrics: Those of the last evaluation.
    """

    def __init__(self, evaluation: EvalHook):
        self.evaluation = evaluation
        self.metrics: dict[str, float] = {}

    def before_run(self, runner) -> None:
        """A resumed run knows what it has measured before."""
        self.metrics = self.history(runner).get(str(runner.epoch), {})

    def after_train_epoch(self, runner) -> None:
        """Pick up what the evaluation hook, which runs just before, has put out."""
        if runner.rank > 0 or not self.evaluation._should_evaluate(runner):
            return
        self.metrics = {name: float(value) for name, value in runner.log_buffer.output.items()
                        if 'mAP' in name and isinstance(value, (int, float))}
        if not self.metrics and isinstance(self.evaluation.dataloader.dataset, CocoDataset):
            # MMDetection gives no metrics where nothing at all was detected.
            self.metrics = dict(bbox_mAP=0.0, bbox_mAP_50=0.0, bbox_mAP_75=0.0)
        history = {**self.history(runner), str(runner.epoch + 1): self.metrics}
        write_atomically(self.path(runner), json.dumps(history, indent=2))

    def path(self, runner) -> str:
        """File of the metrics by epoch."""
        return osp.join(runner.work_dir, 'evaluation.json')

    def history(self, runner) -> dict[str, dict[str, float]]:
        """Metrics by epoch, of the epochs that are done."""
        found = mmcv.load(self.path(runner)) if osp.isfile(self.path(runner)) else {}
        return {epoch: metrics for epoch, metrics in found.items() if int(epoch) <= runner.epoch}


def find_checkpoint(resume: str, config: Config) -> Optional[str]:
    """The checkpoint to go on from, None to start anew.

    Args:
        resume: ``'auto'``, ``'never'`` or a path.
        config: Its ``work_dir`` is looked into, then its ``resume_from``.

    Raises:
        CheckpointError: A named checkpoint does not exist.
    """
    if resume == 'never':
        return None
    key, path = '--resume', resume
    if resume == 'auto':
        latest = latest_checkpoint(config.work_dir)
        key, path = 'resume_from', latest or config.get('resume_from')
    if path is not None and not osp.isfile(path):
        raise CheckpointError(f'{key}: no such checkpoint: {path}')
    return path


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """The newest ``epoch_N.pth`` or ``iter_N.pth`` of a run, None if there is none."""
    if not osp.isdir(work_dir):
        return None
    latest = osp.join(work_dir, 'latest.pth')
    if osp.isfile(latest):
        return latest
    found = {}
    for name in os.listdir(work_dir):
        match = re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', name)
        if match:
            found[int(match[1])] = osp.join(work_dir, name)
    return found[max(found)] if found else None
