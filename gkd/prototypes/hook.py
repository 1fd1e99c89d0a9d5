"""Run the prototype generation when the schedule says so."""

from __future__ import annotations

import logging
import os
import os.path as osp
import re
import time
from typing import Union

from torch import nn

from gkd.bank import PrototypeBank
from gkd.compat.wrapper import unwrap
from gkd.errors import CheckpointError, ConfigError, NumericalError
from gkd.frameworks import (
    HOOKS,
    Dataset,
    UntimedHook,
    build_dataset,
    epochs_in_all,
    prototype_datasets,
)
from gkd.work_dir import PROTOTYPES


@HOOKS.register_module()
class PrototypeHook(UntimedHook):
    """Keep the distiller's prototypes and progress up to date, epoch by epoch.

    At the start of an epoch it rebuilds the bank if ``interval`` epochs have passed, and saves it
    in ``WORK_DIR/prototypes/`` with its epoch and the SHA-256 of the student's weights that it
    comes from. Checkpoints hold the bank they train with; where one does not, the bank is reloaded
    from the folder.

    Args:
        datasets: Configs of the data sets to choose prototypes from: annotated, with the test
            pipeline. With MMDetection 2 ``tools/train.py`` fills this in from ``data.train`` and
            ``data.test``; with MMDetection 3 they are by default the data sets of
            ``train_dataloader`` with the pipeline of ``test_dataloader``.
    """

    def __init__(self, datasets: Union[dict, list, None] = None):
        self.datasets: list[Dataset] = []
        if datasets is not None:
            self.build(datasets)

    def build(self, datasets: Union[dict, list]) -> None:
        """Build the data sets from their configs."""
        configs = datasets if isinstance(datasets, (list, tuple)) else [datasets]
        for config in configs:
            dataset = build_dataset(config)
            # A list of annotation files makes several data sets.
            self.datasets += getattr(dataset, 'datasets', [dataset])

    def before_train(self, runner) -> None:
        """Refuse another model before anything is written, which only MMEngine asks for.

        Raises:
            ConfigError: The model is no distiller, or is to be compiled.
        """
        choose_classes(distiller_of(runner), runner)
        if runner.cfg.get('compile'):
            raise ConfigError(f'compile = {runner.cfg.compile}: every step of a distillation '
                              f'records the calls of both detectors by functions of its own, so '
                              f'that torch would compile every step anew, which takes minutes. '
                              f'Leave `compile` out.')

    def before_train_epoch(self, runner) -> None:
        """Set the progress; generate or reload the bank."""
        distiller = distiller_of(runner)
        distiller.progress = runner.epoch / epochs_in_all(runner)
        if not distiller.needs.bank:
            return
        folder = osp.join(runner.work_dir, PROTOTYPES)
        device = next(distiller.parameters()).device
        epoch = str(runner.epoch + 1)
        if distiller.bank is not None and distiller.bank.metadata.get('epoch') == epoch:
            return  # resumed inside the epoch: its weights are no longer those of the bank
        if runner.epoch % distiller.prototypes.interval == 0:
            if not self.datasets:
                self.build(prototype_datasets(runner))
            self.generate(distiller, runner, folder)
        elif distiller.bank is None:
            distiller.bank = reload_bank(folder, runner.epoch, runner.logger).to(device)

    def generate(self, distiller, runner, folder: str) -> None:
        """Have the distiller generate its bank, and save it.

        Raises:
            NumericalError: A feature is not finite.
        """
        started = time.monotonic()
        if distiller.prototypes.workers is None:
            loader = getattr(runner, 'data_loader', None) or runner.train_dataloader
            distiller.prototypes.workers = loader.num_workers
        try:
            bank = distiller.generate_bank(self.datasets, folder).bank
        except ValueError as error:
            raise NumericalError(f'epoch {runner.epoch + 1}: no prototypes can be chosen: '
                                 f'{error}') from error
        distiller.bank.metadata['epoch'] = bank.metadata['epoch'] = str(runner.epoch + 1)
        if runner.rank == 0:
            bank.save(osp.join(folder, f'epoch_{runner.epoch + 1}.safetensors'))
        runner.logger.info(f'Prototypes: {len(bank.student[0])} on each of {bank.num_levels} '
                           f'levels, generated in {time.monotonic() - started:.1f} s.')


def choose_classes(distiller: nn.Module, runner) -> None:
    """Give a teacher that knows more classes the data's: MMEngine's own runner tells no model.

    Args:
        distiller: The distiller.
        runner: MMEngine's runner.
    """
    information = getattr(runner.train_dataloader.dataset, 'metainfo', {})
    distiller.choose_classes(information.get('classes') or (), 'train_dataloader.dataset')


def distiller_of(runner) -> nn.Module:
    """The distiller that a runner trains.

    Raises:
        ConfigError: It trains a plain detector.
    """
    model = unwrap(runner.model)
    if not hasattr(model, 'needs'):
        raise ConfigError(f'custom_hooks has a PrototypeHook, which serves a Distiller, but the '
                          f'model is a {type(model).__name__}: remove the hook.')
    return model


def reload_bank(folder: str, epoch: int, logger: logging.Logger) -> PrototypeBank:
    """Load the newest saved bank for an epoch that can be read; a damaged one is named.

    Args:
        folder: Where the banks are.
        epoch: Number of the epoch, from 0; later banks are not looked at.
        logger: Where messages go.

    Raises:
        ConfigError: There is none.
        CheckpointError: All are damaged.
    """
    damaged = None
    for path in saved_banks(folder, epoch):
        try:
            bank = PrototypeBank.load(path)
        except CheckpointError as error:
            logger.warning(f'{error} Looking for the bank before it.')
            damaged = error
        else:
            logger.info(f'Prototypes: reloaded {path}.')
            return bank
    raise damaged


def latest_bank(folder: str, epoch: int) -> str:
    """The newest saved bank that was made for epoch number ``epoch`` (from 0) or before.

    Raises:
        ConfigError: There is none.
    """
    return saved_banks(folder, epoch)[0]


def saved_banks(folder: str, epoch: int) -> list[str]:
    """Banks that were made for epoch number ``epoch`` (from 0) or before, newest first.

    Raises:
        ConfigError: There is none.
    """
    saved = {}
    for name in os.listdir(folder) if osp.isdir(folder) else ():
        match = re.fullmatch(r'epoch_(\d+)\.safetensors', name)
        if match and int(match[1]) <= epoch + 1:
            saved[int(match[1])] = osp.join(folder, name)
    if not saved:
        raise ConfigError(f'cannot resume at epoch {epoch + 1}: no prototypes in {folder}. Resume '
                          f'from an epoch at which they are generated, or restore the folder.')
    return [saved[number] for number in sorted(saved, reverse=True)]
