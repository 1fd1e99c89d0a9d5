"""What the command-line tools share."""

from __future__ import annotations

import argparse
import sys
from typing import Callable

import torch.distributed as dist
from mmcv import DictAction

from gkd.errors import GKDError

__all__ = ['DictAction', 'positive', 'run']


def positive(text: str) -> int:
    """An integer from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
    return value


def run(main: Callable[[], None]) -> None:
    """Run a tool; what the user can mend is one message and exit status 2, not a traceback."""
    try:
        main()
        if dist.is_initialized():
            dist.destroy_process_group()
    except GKDError as error:
        print(f'\nerror: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from the last checkpoint.', file=sys.stderr)
        sys.exit(130)
