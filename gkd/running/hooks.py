"""The hooks of a training: those of its config and this project's, with their priorities."""

from __future__ import annotations

from typing import Optional, Union

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
    OptimizerHook,
)
from torch.utils.data import DataLoader

from gkd.errors import naming
from gkd.progress import on_terminal
from gkd.report.loggers import ImageLoggerHook, takes_images
from gkd.running.console import EpochBar
from gkd.running.evaluation import EvaluationRecorder
from gkd.running.finite import FiniteLossHook
from gkd.running.recorder import TrainingRecorder
from gkd.running.resume import EMA_HOOKS, EMA_PRIORITY, HookStates, ImageOrder, ResumeHook
from gkd.running.runner import runner_type


def register_hooks(runner: BaseRunner, config: Config, loader: DataLoader,
                   evaluation: Optional[EvalHook]) -> Optional[EvaluationRecorder]:
    """Register all hooks of a training.

    Args:
        runner: The runner.
        config: The config.
        loader: The loader of the training data, whose order of images is made resumable.
        evaluation: The hook that evaluates; None without evaluation.

    Returns:
        The hook that keeps the metrics of the evaluations; None without evaluation.
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


def optimizer_hook(config: Config, distributed: bool) -> Union[dict, Hook]:
    """The hook that takes optimiser steps, or its config; in mixed precision if that is set."""
    settings = config.get('optimizer_config') or {}
    if config.get('fp16') is not None:
        return Fp16OptimizerHook(**settings, **config.fp16, distributed=distributed)
    return settings if 'type' in settings else OptimizerHook(**settings)


def checkpoint_config(config: Config) -> Optional[dict]:
    """Settings of the hook that writes checkpoints, by default of the one that resumes exactly."""
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
