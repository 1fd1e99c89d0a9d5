"""Train a detector: a distiller, a teacher or a plain student."""

from __future__ import annotations

import logging
import os.path as osp
import platform
import time

import mmdet
import torch
from mmcv import Config
from mmcv.runner import (
    BaseRunner,
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
from gkd.commands.trial import try_training
from gkd.compat.wrapper import unwrap
from gkd.datasets.checks import check_same_classes
from gkd.distiller import Distiller
from gkd.errors import naming
from gkd.files import make_folder, remove_unfinished, write_atomically
from gkd.locks import training_lock
from gkd.matching import check_heads_agree, check_num_classes, check_teacher_classes
from gkd.progress import without_details
from gkd.running.checks import check_training, set_seed
from gkd.running.config import build_model
from gkd.running.console import log_file, open_logger
from gkd.running.data import (
    build_checked_dataset,
    build_evaluated_dataset,
    check_batch,
    check_ground_truth,
    check_test_data,
    prototype_datasets,
)
from gkd.running.device import use_device, without_sync_on_cpu, wrap
from gkd.running.evaluation import evaluation_hook
from gkd.running.hooks import register_hooks
from gkd.running.resume import find_checkpoint
from gkd.running.runner import runner_type
from gkd.running.start import load_or_resume
from gkd.running.trial import try_hook, try_step
from gkd.version import __version__
from gkd.work_dir import PROTOTYPES


@explaining()
def train(config: Config, resume: str = 'auto', validate: bool = True,
          new_optimizer: bool = False) -> dict[str, float]:
    """Train what ``config.model`` describes.

    In a process group that is initialised, all processes call this together.

    Args:
        config: A config from :func:`gkd.running.load_config`, with ``work_dir`` set.
        resume: ``'auto'`` resumes from the last checkpoint in ``work_dir`` if there is one,
            ``'never'`` starts anew, a path resumes from that checkpoint.
        validate: Evaluate as ``config.evaluation`` says.
        new_optimizer: Apply the config's settings of the optimiser when resuming; otherwise those
            of the checkpoint stay.

    Returns:
        The metrics of the last evaluation, empty without one.

    Raises:
        GKDError: Something in the config, the data or the checkpoints is wrong.
    """
    check_training(config)
    set_seed(config)
    with training_lock(config.work_dir, first=get_dist_info()[0] == 0):
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
    check_test_data(config)
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
        load_or_resume(runner, config, checkpoint, recorder, str(device), new_optimizer)
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
    """mmcv's runner with the optimiser; logs and checkpoints name what it runs.

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


def prepare_work_dir(runner: BaseRunner) -> None:
    """Make the work dir on every machine; remove files that a killed process left unfinished."""
    make_folder(runner.work_dir)
    if runner.rank == 0:
        remove_unfinished(runner.work_dir)
        remove_unfinished(osp.join(runner.work_dir, PROTOTYPES))


def keep_config(runner: BaseRunner, config: Config, text: str) -> str:
    """Keep the config's text in the work dir; returns the file."""
    kept = osp.join(config.work_dir, osp.basename(config.filename or 'config.py'))
    if runner.rank == 0 and osp.abspath(kept) != osp.abspath(config.filename or ''):
        write_atomically(kept, text)
    return kept
