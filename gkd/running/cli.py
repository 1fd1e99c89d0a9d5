"""Options of the commands for MMDetection 2."""

from __future__ import annotations

import argparse
import os.path as osp
from typing import Optional

import mmcv
import torch
from mmcv import Config

from gkd.commands import add_device_option, add_trust_option
from gkd.compat.checkpoint import trust_checkpoints
from gkd.running.config import load_config


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


def add_pair_options(parser: argparse.ArgumentParser, folder: str,
                     default: Optional[str] = None) -> None:
    """Add what a tool needs that looks at a trained teacher and student.

    Args:
        parser: The tool's parser.
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
