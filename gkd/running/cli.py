"""What the command-line tools share."""

from __future__ import annotations

import argparse
import contextlib
import os
import os.path as osp
import sys
import tempfile
import time
import traceback
from typing import Callable, Optional

import mmcv
import torch
import torch.distributed as dist
from mmcv import Config

from gkd.compat.checkpoint import trust_checkpoints
from gkd.errors import GKDError
from gkd.progress import silence
from gkd.running.config import load_config
from gkd.running.device_option import add_device_option
from gkd.running.explain import describe, lost_another_process

__all__ = ['DictAction', 'add_device_option', 'add_pair_options', 'add_trust_option', 'positive',
           'read_pair_options', 'run']

# Seconds in which the launcher ends the other processes after the first one has failed.
LAUNCHER_REACTS = 5


class DictAction(mmcv.DictAction):
    """mmcv's KEY=VALUE; text in double quotes is taken as it is, with commas and blanks."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Read all KEY=VALUE of an option."""
        for value in values:
            if not value.partition('=')[0].strip() or '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r} is not KEY=VALUE')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, IndexError) as error:
            raise argparse.ArgumentError(self, f'{" ".join(values)}: {error}') from None

    @staticmethod
    def _parse_iterable(val: str):
        quoted = len(val) > 2 and val[0] == val[-1] == '"' and val[1] not in '(['
        return val[1:-1] if quoted else mmcv.DictAction._parse_iterable(val)


def positive(text: str) -> int:
    """An integer from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
    return value


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``."""
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='read checkpoints even if that runs code in them; only for files of '
                             'which you know where they come from')


def add_pair_options(parser: argparse.ArgumentParser, folder: str,
                     default: Optional[str] = None) -> None:
    """Add what a tool needs that looks at a trained teacher and student.

    Args:
        parser: Of the tool.
        folder: Where the tool writes to, below ``work_dirs``.
        default: The config that it looks at if none is given; None makes the config required.
    """
    parser.add_argument('config', nargs='?' if default else None, default=default,
                        help='distillation config' + (' (default: RetinaNet on tree crowns)'
                                                      if default else ''))
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of its training (default: the '
                        'student that the config starts from)')
    parser.add_argument('--out', help=f'folder to write to (default: work_dirs/{folder}/CONFIG)')
    add_device_option(parser)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='replace settings of the config')
    parser.set_defaults(folder=folder, device='cuda' if torch.cuda.is_available() else 'cpu')
    add_trust_option(parser)


def read_pair_options(args: argparse.Namespace) -> tuple[Config, str, str]:
    """Read the options of :func:`add_pair_options`.

    Returns:
        The config, its name, and the folder to write to.

    Raises:
        ConfigError: The config cannot be read.
    """
    if args.trust_checkpoint:
        trust_checkpoints()
    name = osp.splitext(osp.basename(args.config))[0]
    return (load_config(args.config, args.cfg_options), name,
            args.out or osp.join('work_dirs', args.folder, name))


def run(main: Callable[[], None]) -> None:
    """Run a tool; an error that the user can correct is one message and exit status 2.

    What nobody has foreseen is one message, too, with exit status 1; a file keeps its traceback.

    Of several processes only the first one prints. It also reports the errors that all of them
    meet: the others wait before they report theirs, and meanwhile the launcher ends them.

    Args:
        main: The tool.
    """
    rank = int(os.environ.get('RANK', 0))
    name = f'error in process {rank}' if rank else 'error'
    try:
        with silence() if rank else contextlib.nullcontext():
            main()
        if dist.is_initialized():
            dist.destroy_process_group()
    except GKDError as error:
        time.sleep(LAUNCHER_REACTS if rank else 0)
        print(f'\n{name}: {error}', file=sys.stderr, flush=True)
        leave(2)
    except Exception as error:
        time.sleep(LAUNCHER_REACTS if rank or lost_another_process(error) else 0)
        what = (f'another process has ended or does not answer ({error})'
                if lost_another_process(error) else
                f'{describe(error)} The whole traceback is in {keep_traceback()}')
        print(f'\n{name}: {what}', file=sys.stderr, flush=True)
        leave(1)
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from the last checkpoint.', file=sys.stderr)
        sys.exit(130)


def keep_traceback() -> str:
    """Write the traceback of the exception that is being handled to a file; returns its path."""
    with tempfile.NamedTemporaryFile('w', prefix='gkd_', suffix='.log', delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


def leave(status: int) -> None:
    """Exit; of several processes at once, without waiting for communication that never comes."""
    if 'RANK' in os.environ:
        os._exit(status)
    sys.exit(status)
