"""Options that many commands have."""

from __future__ import annotations

import argparse
import os
from typing import Any

from gkd.errors import ConfigError
from gkd.installed import mmdet_major

# Where a config says how long it trains.
LENGTH = {2: 'runner', 3: 'train_cfg'}[mmdet_major()]


def positive(text: str) -> int:
    """An integer from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
    return value


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``; it takes effect as soon as it is read."""
    parser.add_argument('--trust-checkpoint', action=TrustCheckpoints, nargs=0, default=False,
                        help='read checkpoints even if that runs code in them; only for files of '
                             'which you know where they come from')


class TrustCheckpoints(argparse.Action):
    """Let the process read checkpoints that run code, and store that it does."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Read the option."""
        # Here, as it imports MMDetection, which commands for data sets do not need.
        from gkd.compat.checkpoint import trust_checkpoints

        trust_checkpoints()
        setattr(namespace, self.dest, True)


def add_launcher_options(parser: argparse.ArgumentParser, script: str) -> None:
    """Add ``--launcher``, and ``--local-rank`` for launchers that pass it on.

    Args:
        parser: Of the command.
        script: Name of the file in ``tools/`` that starts the processes.
    """
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help=f'who started this process; tools/{script} sets it')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0,
                        help=argparse.SUPPRESS)


def replace_epochs(config: Any, epochs: int) -> None:
    """Replace a config's number of epochs.

    Args:
        config: A config of the installed MMDetection.
        epochs: The new number.

    Raises:
        ConfigError: The config counts iterations.
    """
    if 'max_iters' in config[LENGTH]:
        raise ConfigError(f'--epochs: {config.filename} counts iterations, not epochs. Set their '
                          f'number instead: {LENGTH}.max_iters.')
    config[LENGTH].max_epochs = epochs


def rank_of(launcher: str) -> int:
    """Number of this process among those that a launcher has started, before they have met."""
    return int(os.environ.get({'pytorch': 'RANK', 'slurm': 'SLURM_PROCID'}.get(launcher, ''), 0))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add what trainings with both MMDetections take."""
    parser.add_argument('--work-dir', help='where checkpoints, logs and prototypes go '
                                           '(default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--resume', default='auto', metavar='auto|never|CHECKPOINT',
                        help='resume from the last checkpoint in the work dir (auto), start anew '
                             '(never), or resume from a checkpoint')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate')
    parser.add_argument('--seed', type=int, help='replaces the config\'s seed')
    parser.add_argument('--epochs', type=positive, help='replaces the config\'s number of epochs')
