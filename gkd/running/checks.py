"""Checks of a config that is to be trained, before anything is built or written."""

from __future__ import annotations

from mmcv import Config
from mmcv.runner import EpochBasedRunner, IterBasedRunner

from gkd.commands.values import check_counts, check_scaling
from gkd.compat.runner import check_fp16
from gkd.detectors.source import check_checkpoints, check_start
from gkd.distiller import Distiller
from gkd.errors import ConfigError, naming
from gkd.report.loggers import check_loggers
from gkd.running.runner import IterationRunner, runner_type

# Settings that count something, and the smallest value of each.
COUNTS = {'runner.max_epochs': 1, 'runner.max_iters': 1,
          'checkpoint_config.interval': -1, 'checkpoint_config.max_keep_ckpts': -1,
          'checkpoint_config.inside_epoch': 0, 'log_config.interval': -1,
          'data.train_dataloader.workers_per_gpu': 0}


def check_training(config: Config) -> None:
    """Raise GKDError if a config lacks what training needs, or names what does not exist."""
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
    check_runner(config)
    check_workflow(config)
    with naming('log_config or custom_hooks'):
        check_loggers(config)
    with naming('model.teacher or model.student'):
        check_checkpoints(config.model)


def check_runner(config: Config) -> None:
    """Raise ConfigError if the runner is unknown, or does not count as other settings do."""
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


def check_workflow(config: Config) -> None:
    """Raise ConfigError for a workflow that does more than train."""
    workflow = config.get('workflow', [('train', 1)])
    with naming(f'workflow = {workflow}'):
        modes = [mode for mode, _ in workflow]
    if modes != ['train']:
        raise ConfigError(f'workflow = {workflow}: only [("train", 1)] is supported; '
                          f'`evaluation` evaluates between epochs.')


def set_seed(config: Config) -> None:
    """Set the seed 0 where a config has none, so that any run can be resumed and repeated.

    Raises:
        ConfigError: The seed is not valid.
    """
    if config.get('seed') is None:
        config.seed = 0
    if type(config.seed) is not int or not 0 <= config.seed < 2 ** 32:
        raise ConfigError(f'seed = {config.seed!r}: must be an integer from 0 to 2 ** 32 - 1, or '
                          f'None for 0.')
