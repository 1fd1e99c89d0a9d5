"""Train a detector: a distiller, a teacher or a plain student."""

from __future__ import annotations

import logging
import math
import os.path as osp
import platform
import time
from typing import Optional

import mmdet
import torch
from mmcv import Config
from mmcv.runner import (
    HOOKS,
    BaseRunner,
    DistSamplerSeedHook,
    EpochBasedRunner,
    EvalHook,
    Fp16OptimizerHook,
    Hook,
    IterBasedRunner,
    OptimizerHook,
    build_optimizer,
    build_runner,
    get_dist_info,
)
from mmdet.apis import set_random_seed
from mmdet.apis.train import auto_scale_lr
from mmdet.datasets import CustomDataset, build_dataloader
from mmdet.models.detectors import BaseDetector
from mmdet.utils import setup_multi_processes
from torch import nn
from torch.utils.data import DataLoader

from gkd.commands.explain import explaining
from gkd.commands.layout import place
from gkd.commands.resume import nothing_left
from gkd.commands.trial import try_training
from gkd.commands.values import check_counts, check_scaling
from gkd.compat.runner import check_fp16
from gkd.compat.wrapper import unwrap
from gkd.datasets.checks import check_same_classes
from gkd.detectors.source import check_checkpoints, check_start
from gkd.distiller import Distiller
from gkd.errors import CheckpointError, ConfigError, naming
from gkd.files import make_folder, remove_unfinished, write_atomically
from gkd.locks import only_training
from gkd.matching import check_heads_agree, check_num_classes, check_teacher_classes
from gkd.progress import on_terminal, without_details
from gkd.report.loggers import ImageLoggerHook, check_loggers, takes_images
from gkd.resume import going_on
from gkd.running.changes import (
    NEW_OPTIMIZER,
    apply_optimizer,
    has_other_optimizer,
    optimizer_settings,
    resume_without_optimizer,
    tell_changes,
)
from gkd.running.config import build_model
from gkd.running.console import EpochBar, log_file, open_logger
from gkd.running.data import (
    build_checked_dataset,
    build_evaluated_dataset,
    check_batch,
    check_ground_truth,
    look_at_test_data,
    prototype_datasets,
)
from gkd.running.device import use_device, without_sync_on_cpu, wrap
from gkd.running.evaluation import EvaluationRecorder, MissedEvaluation, evaluation_hook
from gkd.running.finite import FiniteLossHook
from gkd.running.recorder import TrainingRecorder
from gkd.running.resume import (
    EMA_HOOKS,
    EMA_PRIORITY,
    KEY,
    HookStates,
    ImageOrder,
    ResumeHook,
    find_checkpoint,
)
from gkd.running.runner import IterationRunner, runner_type, trained
from gkd.running.trial import try_hook, try_step
from gkd.version import __version__
from gkd.work_dir import PROTOTYPES, checkpoints

# Settings that count something, and the smallest value of each.
COUNTS = {'runner.max_epochs': 1, 'runner.max_iters': 1,
          'checkpoint_config.interval': -1, 'checkpoint_config.max_keep_ckpts': -1,
          'checkpoint_config.inside_epoch': 0, 'log_config.interval': -1,
          'data.train_dataloader.workers_per_gpu': 0}


@explaining()
def train(config: Config, resume: str = 'auto', validate: bool = True,
          new_optimizer: bool = False) -> dict[str, float]:
    """Train what ``config.model`` describes.

    In a process group that is initialised, all processes call this together.

    Args:
        config: A config from :func:`gkd.running.load_config`, with ``work_dir`` set.
        resume: ``'auto'`` goes on from the last checkpoint in ``work_dir`` if there is one,
            ``'never'`` starts anew, a path goes on from that checkpoint.
        validate: Evaluate as ``config.evaluation`` says.
        new_optimizer: Apply the config's settings of the optimiser when going on; else those of
            the checkpoint stay.

    Returns:
        The metrics of the last evaluation, empty without one.

    Raises:
        GKDError: Something in the config, the data or the checkpoints is wrong.
    """
    check_training(config)
    check_seed(config)
    with only_training(config.work_dir, first=get_dist_info()[0] == 0):
        return run_training(config, resume, validate, new_optimizer)


def run_training(config: Config, resume: str, validate: bool,
                 new_optimizer: bool) -> dict[str, float]:
    """Train, as :func:`train` does, while no other training writes into the work dir."""
    # Everything that can be wrong is checked before anything is written.
    # OpenCV's threads and those of the loader's workers would slow each other down.
    setup_multi_processes(config)
    config.gpu_ids = range(get_dist_info()[1])
    device = use_device()
    with naming('log_level'):
        logger = open_logger(config.get('log_level', 'INFO'))
    train_set = build_checked_dataset(config.data.train, 'data.train')
    val_set = build_evaluated_dataset(config, 'val') if validate else None
    look_at_test_data(config)
    model = without_sync_on_cpu(initial_model(config, train_set), device)
    evaluation = evaluation_hook(config, model, val_set) if validate else None
    loader = training_loader(config, train_set)
    try_training(train_set, 'data.train', lambda samples: try_step(model, device, samples),
                 config.data.train_dataloader.samples_per_gpu)
    if evaluation is not None:
        check_same_classes(val_set.CLASSES or (), 'data.val', train_set.CLASSES or (),
                           'data.train')
        try_hook(evaluation, config, model, device)
    checkpoint = find_checkpoint(resume, config)
    if config.get('auto_scale_lr'):
        auto_scale_lr(config, torch.distributed.is_initialized(), logger)
    text = config.pretty_text  # mmcv takes settings out of the config
    wrapped = wrap(place(model, device, config), device,
                   config.get('find_unused_parameters', False))
    runner = make_runner(config, text, wrapped, logger)
    recorder = register_hooks(runner, config, loader, evaluation)

    prepare_work_dir(runner)
    with log_file(logger, osp.join(config.work_dir, f'{runner.timestamp}.log')):
        logger.info(
            f'gkd {__version__}, torch {torch.__version__}, mmdet {mmdet.__version__}, '
            f'Python {platform.python_version()}, {runner.world_size} process(es) on '
            f'{device.type}')
        set_start(runner, config, checkpoint, recorder, str(device), new_optimizer)
        kept = keep_config(runner, config, text)
        runner.run([loader], [('train', 1)])
        if runner.rank == 0:
            # Imported here: the drawing libraries are needed only at the end.
            from gkd.report.summary import summarise
            logger.info(f'Done.\n\n{summarise(runner.work_dir, config.filename or kept)}')
    return recorder.metrics if recorder else {}


def initial_model(config: Config, train_set: CustomDataset) -> BaseDetector:
    """The model with its initial weights, after a check that it fits the training data.

    A distiller without a :class:`~gkd.prototypes.PrototypeHook` gets one in ``custom_hooks``.
    """
    set_random_seed(config.seed, deterministic=config.get('deterministic', False))
    model = build_model(config)
    with without_details():
        model.init_weights()
    check_num_classes(model, train_set.CLASSES, 'data.train')
    check_heads_agree(model)
    check_teacher_classes(model, train_set.CLASSES, 'data.train')
    check_ground_truth(model, config.data.train, 'data.train')
    model.CLASSES = train_set.CLASSES
    hooks = config.get('custom_hooks') or ()
    if isinstance(model, Distiller) and not any(hook['type'] == 'PrototypeHook' for hook in hooks):
        config.custom_hooks = [
            *hooks, dict(type='PrototypeHook', datasets=prototype_datasets(config))]
    return model


def check_seed(config: Config) -> None:
    """Set the seed 0 where a config has none, so that any run can be resumed and repeated.

    Raises:
        ConfigError: The seed is not valid.
    """
    if config.get('seed') is None:
        config.seed = 0
    if type(config.seed) is not int or not 0 <= config.seed < 2 ** 32:
        raise ConfigError(f'seed = {config.seed!r}: must be an integer from 0 to 2 ** 32 - 1, or '
                          f'None for 0.')


def training_loader(config: Config, train_set: CustomDataset) -> DataLoader:
    """The loader of the training data; of several processes each gets its own share."""
    settings = config.data.get('train_dataloader', {})
    check_batch(settings.get('samples_per_gpu'), 'train')
    with naming('data.train_dataloader'):
        return build_dataloader(
            train_set, dist=torch.distributed.is_initialized(), seed=config.seed, num_gpus=1,
            **settings)


def make_runner(config: Config, text: str, model: nn.Module,
                logger: logging.Logger) -> BaseRunner:
    """mmcv's runner with the optimiser; logs and checkpoints tell what it runs.

    Args:
        config: The config.
        text: Text of the config as it was read.
        model: The model on its device, wrapped.
        logger: Where messages go.
    """
    with naming('optimizer'):
        optimizer = build_optimizer(model, config.optimizer)
    with naming('runner'):
        runner = build_runner({**config.runner, 'type': runner_type(config)}, default_args=dict(
            model=model, optimizer=optimizer, logger=logger,
            meta=dict(config=text, seed=config.seed, gkd_version=__version__,
                      mmdet_version=mmdet.__version__,
                      CLASSES=unwrap(model).CLASSES)))
    runner.timestamp = time.strftime('%Y%m%d_%H%M%S')
    runner.work_dir = osp.abspath(config.work_dir)
    return runner


def register_hooks(runner: BaseRunner, config: Config, loader: DataLoader,
                   evaluation: Optional[EvalHook]) -> Optional[EvaluationRecorder]:
    """Register the hooks of the config and our own, each with its own priority.

    Args:
        runner: The runner.
        config: The config.
        loader: The loader, whose order of images is made resumable.
        evaluation: The hook that evaluates; None without evaluation.

    Returns:
        What keeps the metrics of the evaluations; None without any.
    """
    distributed = torch.distributed.is_initialized()
    with naming('lr_config, optimizer_config, checkpoint_config, log_config or custom_hooks'):
        runner.register_training_hooks(
            config.lr_config, optimizer_hook(config, distributed),
            checkpoint_config(config), config.get('log_config'),
            config.get('momentum_config'), custom_hooks_config=custom_hooks(config))
    ours: list[Hook] = [DistSamplerSeedHook()] if distributed else []
    if isinstance(runner, EpochBasedRunner):
        resume = ResumeHook(ImageOrder(loader, config.seed))
        ours += [resume, HookStates(resume)]
        if runner.rank == 0 and on_terminal():
            ours.append(EpochBar())
    recorder = None
    if evaluation is not None:
        recorder = EvaluationRecorder(evaluation)
        runner.register_hook(evaluation, priority=recorder.PRIORITY)
        ours.append(recorder)
    for hook in (*ours, TrainingRecorder()):
        runner.register_hook(hook, priority=getattr(hook, 'PRIORITY', 'NORMAL'))
    return recorder


def prepare_work_dir(runner: BaseRunner) -> None:
    """Make the work dir on every machine; remove files that a killed process left unfinished."""
    make_folder(runner.work_dir)
    if runner.rank == 0:
        remove_unfinished(runner.work_dir)
        remove_unfinished(osp.join(runner.work_dir, PROTOTYPES))


def set_start(runner: BaseRunner, config: Config, checkpoint: Optional[str],
              recorder: Optional[EvaluationRecorder], device: str,
              new_optimizer: bool = False) -> None:
    """Go on from a checkpoint, or start with the weights of ``config.load_from``.

    Args:
        runner: The runner with all its hooks.
        config: The config.
        checkpoint: The checkpoint to go on from; None starts anew.
        recorder: Knows whether the checkpoint's epoch was evaluated.
        device: Where tensors go to.
        new_optimizer: Whether to apply the config's settings of the optimiser.

    Raises:
        CheckpointError: The checkpoint's optimiser is of another type.
    """
    if checkpoint is None:
        if config.get('load_from'):
            runner.load_checkpoint(config.load_from)
        return
    text, settings = runner.meta['config'], optimizer_settings(runner)
    with going_on(checkpoint, runner.work_dir):
        state = resume_without_optimizer(runner, checkpoint, device)
    before, runner.meta['config'] = runner.meta.get('config'), text
    other = has_other_optimizer(before, config)
    if other and not new_optimizer:
        raise CheckpointError(f'{checkpoint} holds the state of another optimiser than '
                              f'optimizer.type = {config.optimizer.type}. Begin with the new one, '
                              f'without state: {NEW_OPTIMIZER}')
    if state and not other:
        runner.optimizer.load_state_dict(state)
    if new_optimizer:
        apply_optimizer(runner, settings)
    tell_changes(runner, before, text, new_optimizer)
    counts_iterations = isinstance(runner, IterationRunner)
    at_end = counts_iterations or not runner.meta.get(KEY, {}).get('batches')
    own = {runner.work_dir, *(osp.dirname(osp.abspath(path))
                              for path in checkpoints(runner.work_dir))}
    if recorder and at_end and osp.dirname(osp.abspath(checkpoint)) in own:
        runner.register_hook(MissedEvaluation(recorder), priority=MissedEvaluation.PRIORITY)
    length = runner.max_iters if counts_iterations else runner.max_epochs
    if trained(runner) >= (length or math.inf):
        runner.logger.info(nothing_left(
            checkpoint, f'{trained(runner)} {"iterations" if counts_iterations else "epochs"}'))


def keep_config(runner: BaseRunner, config: Config, text: str) -> str:
    """Keep the config's text in the work dir; returns the file."""
    kept = osp.join(config.work_dir, osp.basename(config.filename or 'config.py'))
    if runner.rank == 0 and osp.abspath(kept) != osp.abspath(config.filename or ''):
        write_atomically(kept, text)
    return kept


def check_training(config: Config) -> None:
    """Raise GKDError if a config lacks what training needs, or names what is not there."""
    missing = [key for key in ('work_dir', 'optimizer', 'lr_config', 'runner')
               if not config.get(key)]
    missing += [f'data.{key}' for key in ('train', 'val', 'test') if key not in config.data]
    if missing:
        raise ConfigError(f'config {config.filename} cannot be trained: it has no '
                          f'{", ".join(missing)}.')
    check_counts(config, COUNTS)
    check_scaling(config)
    check_start(config)
    if config.get('fp16') is not None:
        check_fp16()
    kind = runner_type(config)
    if kind is None:
        raise ConfigError(f'runner.type = {config.runner.get("type")!r} is unknown; use '
                          f'EpochBasedRunner or IterBasedRunner.')
    if config.model.type == Distiller.__name__ and not issubclass(kind, EpochBasedRunner):
        raise ConfigError(f'runner.type = {config.runner.type}: the decay of distillation is '
                          f'counted in epochs; use EpochBasedRunner or IterBasedRunner.')
    length = 'max_iters' if issubclass(kind, IterBasedRunner) else 'max_epochs'
    if not config.runner.get(length):
        raise ConfigError(f'runner.{length} = {config.runner.get(length)}: must be at least 1.')
    for key in ('evaluation', 'checkpoint_config') if kind is IterationRunner else ():
        if (config.get(key) or {}).get('by_epoch'):
            raise ConfigError(f'{key}.by_epoch = True, and runner.type = {config.runner.type} '
                              f'counts iterations: set it to False, and `interval` to a number '
                              f'of iterations.')
    workflow = config.get('workflow', [('train', 1)])
    with naming(f'workflow = {workflow}'):
        modes = [mode for mode, _ in workflow]
    if modes != ['train']:
        raise ConfigError(f'workflow = {workflow}: only [("train", 1)] is supported; '
                          f'`evaluation` evaluates between epochs.')
    with naming('log_config or custom_hooks'):
        check_loggers(config)
    with naming('model.teacher or model.student'):
        check_checkpoints(config.model)


def checkpoint_config(config: Config) -> Optional[dict]:
    """mmcv's settings of the checkpoints, by default of the kind that resumes exactly."""
    settings = config.get('checkpoint_config')
    if settings is None or not issubclass(runner_type(config), EpochBasedRunner):
        return settings
    return {'type': 'ResumableCheckpointHook', **settings}


def custom_hooks(config: Config) -> list[dict]:
    """The config's own hooks, the check of the losses, and pictures for loggers that show them."""
    hooks = [dict(hook) for hook in config.get('custom_hooks') or ()]
    ours = [FiniteLossHook.__name__] + [ImageLoggerHook.__name__] * takes_images(config)
    hooks += [dict(type=name) for name in ours if not any(hook['type'] == name for hook in hooks)]
    for hook in hooks:
        kind = HOOKS.get(hook['type'])
        priority = getattr(kind, 'PRIORITY', None)
        if kind is not None and issubclass(kind, EMA_HOOKS):
            priority = EMA_PRIORITY
        if priority is not None:
            hook.setdefault('priority', priority)
    return hooks


def optimizer_hook(config: Config, distributed: bool):
    """The optimiser step, in mixed precision if the config asks for it."""
    settings = config.get('optimizer_config') or {}
    if config.get('fp16') is not None:
        return Fp16OptimizerHook(**settings, **config.fp16, distributed=distributed)
    return settings if 'type' in settings else OptimizerHook(**settings)
