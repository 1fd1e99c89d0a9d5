"""TensorBoard and Weights & Biases: the packages that they need, and pictures for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
from mmcv import Config
from mmcv.runner import HOOKS, EvalHook, Hook, LoggerHook, TensorboardLoggerHook, WandbLoggerHook
from mmdet.datasets import CustomDataset

from gkd.compat.wrapper import unwrap
from gkd.errors import ConfigError, EnvironmentMismatchError
from gkd.prototypes import PrototypeHook

# Named like the modules that their hooks import.
PACKAGES = {'TensorboardLoggerHook': 'tensorboard', 'WandbLoggerHook': 'wandb',
            'MMDetWandbHook': 'wandb', 'MlflowLoggerHook': 'mlflow',
            'DvcliveLoggerHook': 'dvclive', 'ClearMLLoggerHook': 'clearml'}
TAKE_IMAGES = (TensorboardLoggerHook, WandbLoggerHook)


def logger_settings(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings of the loggers of a training, and their places in the config."""
    for key, hooks in (('log_config.hooks', (config.get('log_config') or {}).get('hooks')),
                       ('custom_hooks', config.get('custom_hooks'))):
        for number, hook in enumerate(hooks or ()):
            if not isinstance(hook, dict):
                raise ConfigError(f'{key}[{number}] = {hook!r}: must be dict(type=...), in a '
                                  f'config file; --cfg-options cannot hold such lists.')
            kind = HOOKS.get(hook.get('type', ''))
            if kind is not None and issubclass(kind, LoggerHook):
                yield f'{key}[{number}]', hook


def check_loggers(config: Config) -> None:
    """Raise EnvironmentMismatchError if the package of a logger is not installed."""
    for key, hook in logger_settings(config):
        package = PACKAGES.get(hook['type'])
        if package is not None and importlib.util.find_spec(package) is None:
            raise EnvironmentMismatchError(
                f'{key}: {hook["type"]} needs the package {package}, which is not installed: '
                f'pip install {package}. Or leave the hook out.')


def takes_images(config: Config) -> bool:
    """Whether one of the loggers can show images."""
    return any(issubclass(HOOKS.get(hook['type']), TAKE_IMAGES)
               for _, hook in logger_settings(config))


@HOOKS.register_module()
class ImageLoggerHook(Hook):
    """Send pictures to TensorBoard and Weights & Biases, through mmcv's hooks for them.

    After every evaluation it draws what was detected on a few validation images, and after every
    generation of prototypes those of a few classes. A training with one of these loggers gets the
    hook by itself; name it in ``custom_hooks`` to change how much is drawn.

    Args:
        num_images: Number of validation images to draw; they have a typical number of objects.
        num_classes: Number of classes to draw, the first ones that have prototypes.
    """

    # After the hook that evaluates (70), before the loggers (90), which end a step of W&B.
    PRIORITY = 80

    def __init__(self, num_images: int = 4, num_classes: int = 3):
        self.num_images = num_images
        self.num_classes = num_classes
        self.evaluation: Optional[EvalHook] = None
        self.shown: Optional[list] = None

    def before_run(self, runner) -> None:
        """Find the hook that evaluates."""
        self.evaluation = next((hook for hook in runner.hooks if isinstance(hook, EvalHook)), None)

    def before_train_epoch(self, runner) -> None:
        """Show prototypes that were generated just now."""
        model = unwrap(runner.model)
        bank = getattr(model, 'bank', None)
        if runner.rank == 0 and bank is not None and \
                bank.metadata.get('epoch') == str(runner.epoch + 1):
            self.show(runner, self.prototypes, bank)

    def after_train_iter(self, runner) -> None:
        """Show what an evaluation inside an epoch has detected."""
        self.after_train_epoch(runner)

    def after_train_epoch(self, runner) -> None:
        """Show what an evaluation has detected."""
        results = getattr(self.evaluation, 'latest_results', None)
        if runner.rank == 0 and results is not None and results is not self.shown:
            self.shown = results
            self.show(runner, self.detections, results)

    def show(self, runner, draw, *args) -> None:
        """Draw pictures and send them to all loggers; a failure here does not end the run."""
        loggers = [hook for hook in runner.hooks if isinstance(hook, TAKE_IMAGES)]
        if not loggers:
            return
        try:
            pictures = dict(draw(runner, *args))
        except Exception as error:
            runner.logger.warning(f'No pictures for the loggers: {type(error).__name__}: {error}')
            return
        for hook in loggers:
            if isinstance(hook, TensorboardLoggerHook):
                for name, pixels in pictures.items():
                    hook.writer.add_image(name, pixels, hook.get_iter(runner), dataformats='HWC')
            else:
                # They belong to the step that the hook logs next.
                hook.wandb.log({name: hook.wandb.Image(pixels)
                                for name, pixels in pictures.items()}, commit=False)

    def prototypes(self, runner, bank) -> Iterator[tuple[str, np.ndarray]]:
        """Pictures of a bank, by name."""
        # Imported here: the drawing libraries are slow, and most runs need them only at the end.
        from gkd.report.drawing import pixels_of
        from gkd.report.prototypes import prototype_figure
        datasets = next(hook for hook in runner.hooks if isinstance(hook, PrototypeHook)).datasets
        folders = [dataset.img_prefix or '' for dataset in datasets]
        counts = sum(offsets[1:] - offsets[:-1] for offsets in bank.offsets)
        for label in counts.nonzero().flatten().tolist()[:self.num_classes]:
            classes = datasets[0].CLASSES
            yield (f'prototypes/{classes[label]}',
                   pixels_of(prototype_figure(bank, folders, classes, label)))

    def detections(self, runner, results: list) -> Iterator[tuple[str, np.ndarray]]:
        """A picture of what was detected, by name."""
        from gkd.report.detections import results_figure
        from gkd.report.drawing import pixels_of
        dataset = self.evaluation.dataloader.dataset
        if not isinstance(dataset, CustomDataset):
            raise TypeError(f'data.val is a {type(dataset).__name__}; its images are not known')
        yield 'detections', pixels_of(results_figure(dataset, results, self.num_images))
