"""Train a detector: a distiller, a teacher or a plain student."""

from __future__ import annotations

import inspect
import math
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
    RUNNERS,
    DistSamplerSeedHook,
    EpochBasedRunner,
    Fp16OptimizerHook,
    OptimizerHook,
    build_optimizer,
    build_runner,
    get_dist_info,
)
from mmdet.apis import set_random_seed
from mmdet.apis.train import auto_scale_lr
from mmdet.datasets import build_dataloader
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gkd.detectors import Distiller
from gkd.detectors.source import check_checkpoints
from gkd.errors import CheckpointError, ConfigError
from gkd.files import remove_unfinished, write_atomically
from gkd.progress import on_terminal
from gkd.report.loggers import PRIORITY, ImageLoggerHook, check_loggers, takes_images
from gkd.report.recorder import TrainingRecorder
from gkd.running.allocator import keep_freed_memory
from gkd.running.config import build_model, naming
from gkd.running.console import EpochBar, log_file, open_logger, without_details
from gkd.running.data import (
    build_checked_dataset,
    check_num_classes,
    check_teacher_classes,
    look_at_test_data,
    prototype_datasets,
)
from gkd.running.evaluation import EvaluationRecorder, MissedEvaluation, evaluation_hook
from gkd.running.explain import explaining
from gkd.running.finite import FiniteLossHook
from gkd.running.resume import KEY, ImageOrder, ResumeHook, find_checkpoint
from gkd.version import __version__
from gkd.work_dir import PROTOTYPES


@explaining()
def train(config: Config, resume: str = 'auto', validate: bool = True) -> dict[str, float]:
    """Train what ``config.model`` describes.

    In a process group that is initialised, all processes call this together.

    Args:
        config: A config from :func:`gkd.running.load_config`, with ``work_dir`` set.
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
    with naming('log_config or custom_hooks'):
        check_loggers(config)
    with naming('model.teacher or model.student'):
        check_checkpoints(config.model)
    config.setdefault('seed', 0)
    config.gpu_ids = range(world_size)
    logger = open_logger(config.get('log_level', 'INFO'))

    # All that can be wrong is looked at before anything is written.
    train_set = build_checked_dataset(config.data.train, 'data.train')
    val_set = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True)) \
        if validate else None
    look_at_test_data(config)
    set_random_seed(config.seed, deterministic=config.get('deterministic', False))
    model = build_model(config)
    with without_details():
        model.init_weights()
    check_num_classes(model, train_set, 'data.train')
    check_teacher_classes(model, train_set, 'data.train')
    model.CLASSES = train_set.CLASSES
    if isinstance(model, Distiller) and not any(
            hook['type'] == 'PrototypeHook' for hook in config.get('custom_hooks') or ()):
        config.custom_hooks = [*(config.get('custom_hooks') or ()),
                               dict(type='PrototypeHook', datasets=prototype_datasets(config))]
    recorder = evaluation = None
    if validate:
        evaluation = evaluation_hook(config, model, val_set, distributed)
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
            meta=dict(config=text, seed=config.seed, gkd_version=__version__,
                      mmdet_version=mmdet.__version__, CLASSES=train_set.CLASSES)))
    runner.timestamp = time.strftime('%Y%m%d_%H%M%S')
    with naming('lr_config, optimizer_config, checkpoint_config, log_config or custom_hooks'):
        runner.register_training_hooks(
            config.lr_config, optimizer_hook(config, distributed),
            checkpoint_config(config), config.get('log_config'),
            config.get('momentum_config'), custom_hooks_config=custom_hooks(config))
    if distributed:
        runner.register_hook(DistSamplerSeedHook())
    if isinstance(runner, EpochBasedRunner):
        runner.register_hook(ResumeHook(ImageOrder(loader, config.seed)), priority='HIGHEST')
        if rank == 0 and on_terminal():
            runner.register_hook(EpochBar(), priority='VERY_HIGH')
    if validate:
        runner.register_hook(evaluation, priority='LOW')
        runner.register_hook(recorder, priority='LOW')
    runner.register_hook(TrainingRecorder())

    runner.work_dir = osp.abspath(config.work_dir)
    mmcv.mkdir_or_exist(runner.work_dir)
    if rank == 0:
        remove_unfinished(runner.work_dir)
        remove_unfinished(osp.join(runner.work_dir, PROTOTYPES))
    with log_file(logger, osp.join(config.work_dir, f'{runner.timestamp}.log')):
        logger.info(
            f'gkd {__version__}, torch {torch.__version__}, mmdet {mmdet.__version__}, '
            f'Python {platform.python_version()}, {world_size} process(es) on {device.type}')
        if checkpoint is not None:
            runner.resume(checkpoint, map_location=str(device))
            at_end = not runner.meta.get(KEY, {}).get('batches')
            if validate and at_end and osp.dirname(osp.abspath(checkpoint)) == runner.work_dir:
                runner.register_hook(MissedEvaluation(recorder), priority='LOWEST')
        elif config.get('load_from'):
            runner.load_checkpoint(config.load_from)
        kept = osp.join(config.work_dir, osp.basename(config.filename or 'config.py'))
        if rank == 0 and osp.abspath(kept) != osp.abspath(config.filename or ''):
            write_atomically(kept, text)
        if checkpoint is not None and runner.epoch >= (runner.max_epochs or math.inf):
            logger.info(f'{checkpoint} is trained for {runner.epoch} epochs already; nothing is '
                        f'left to do. To train anew: --resume never, or another --work-dir.')
        runner.run([loader], [('train', 1)])
        if rank == 0:
            logger.info(f'Done.\n\n{summary(runner.work_dir, config.filename or kept)}')
    return recorder.metrics if validate else {}


def summary(work_dir: str, config: str) -> str:
    """What a run comes to; a run that is done must not fail here."""
    # Not above: the libraries that draw are needed at the end, not when a training is started.
    from gkd.report.summary import format_summary
    try:
        return format_summary(work_dir, config)
    except Exception as error:
        return f'{work_dir} could not be summarised ({type(error).__name__}: {error}).'


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


def checkpoint_config(config: Config) -> Optional[dict]:
    """mmcv's settings of the checkpoints, by default of the kind that resumes exactly."""
    settings = config.get('checkpoint_config')
    if settings is None or not issubclass(RUNNERS.get(config.runner.type), EpochBasedRunner):
        return settings
    return {'type': 'ResumableCheckpointHook', **settings}


def custom_hooks(config: Config) -> list[dict]:
    """The config's own hooks, the watch on the losses, and pictures for loggers that take them."""
    hooks = [dict(hook) for hook in config.get('custom_hooks') or ()]
    ours = {FiniteLossHook.__name__: 'HIGH'}
    if takes_images(config):
        ours[ImageLoggerHook.__name__] = PRIORITY
    for name, priority in ours.items():
        if not any(hook['type'] == name for hook in hooks):
            hooks.append(dict(type=name))
        for hook in hooks:
            if hook['type'] == name:
                hook.setdefault('priority', priority)
    return hooks


def optimizer_hook(config: Config, distributed: bool):
    """The optimiser step, in mixed precision if the config asks for it."""
    settings = config.get('optimizer_config') or {}
    if config.get('fp16') is not None:
        return Fp16OptimizerHook(**settings, **config.fp16, distributed=distributed)
    return settings if 'type' in settings else OptimizerHook(**settings)
