"""The schedule of a training: length, images per step, learning rate, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Optional

from gkd.commands.distillation import counted
from gkd.frameworks import Config


@dataclass(frozen=True)
class Schedule:
    """The schedule of a config.

    Attributes:
        length: Epochs, or steps if the config counts those.
        unit: ``'epoch'`` or ``'step'``.
        images: Images of each process in a step.
        learning_rate: As the config has it; None if it leaves it to the optimiser.
        base_batch: Images a step that the rate is for; None if it is not scaled.
        checkpoints: Checkpoints that lie in the work dir at the end.

    Example:
        >>> Schedule(12, 'epoch', images=2, learning_rate=0.01, base_batch=16,
        ...          checkpoints=12).describe(gpus=4)
        '12 epochs, 8 images per step, learning rate 0.005 (0.01 is for 16 images)'
    """

    length: int
    unit: str
    images: int
    learning_rate: Optional[float]
    base_batch: Optional[int]
    checkpoints: int

    def scaled_rate(self, gpus: int) -> Optional[float]:
        """The learning rate for the images of a number of processes."""
        if self.learning_rate is None or self.base_batch is None:
            return self.learning_rate
        return self.learning_rate * self.images * gpus / self.base_batch

    def generations(self, interval: int, images: Optional[int], gpus: int) -> int:
        """How often prototypes are generated every ``interval`` epochs.

        Args:
            interval: Epochs between two generations.
            images: Of a pass through the training data, which is an epoch of a training that
                counts steps; others do not need it.
            gpus: Processes that train.
        """
        epochs = (self.length if self.unit == 'epoch' else
                  self.length * self.images * gpus / images)
        return ceil(epochs / interval)

    def describe(self, gpus: int) -> str:
        """The schedule in words, for a number of processes."""
        text = f'{counted(self.length, self.unit)}, {self.images * gpus} images per step'
        rate = self.scaled_rate(gpus)
        if rate is None:
            return text
        scaled = (f' ({self.learning_rate:g} is for {self.base_batch} images)'
                  if rate != self.learning_rate else '')
        return f'{text}, learning rate {rate:g}{scaled}'


def kept_checkpoints(length: int, settings: Optional[dict]) -> int:
    """Checkpoints that a training keeps.

    Args:
        length: Its epochs, or steps if it counts those.
        settings: Of the hook that writes them; None if there is none.

    Example:
        >>> [kept_checkpoints(24, settings) for settings in (
        ...     dict(interval=5), dict(interval=1, max_keep_ckpts=2), dict(interval=-1), None)]
        [5, 2, 1, 0]
    """
    if settings is None:
        return 0
    interval, most = settings.get('interval', -1), settings.get('max_keep_ckpts', -1)
    written = length // interval if interval > 0 else 0
    if settings.get('save_last', True) and (interval <= 0 or length % interval):
        written += 1
    return min(written, most) if most > 0 else written


def base_batch(config: Config) -> Optional[int]:
    """Images per step that a config's learning rate is for; None if it is not to be scaled."""
    scaling = config.get('auto_scale_lr') or {}
    return scaling.base_batch_size if scaling.get('enable', False) else None
