"""Options of the tools that look at a trained teacher and student."""

from __future__ import annotations

import argparse
import os.path as osp
from typing import Optional

import torch

from gkd.commands import add_device_option, add_trust_option
from gkd.commands.settings import add_settings_option
from gkd.frameworks import Config
from gkd.looking.door import load_config


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
    add_settings_option(parser)
    parser.set_defaults(folder=folder, device='cuda' if torch.cuda.is_available() else 'cpu')
    add_trust_option(parser)


def read_pair_options(args: argparse.Namespace) -> tuple[Config, str, str]:
    """Read the options of :func:`add_pair_options`.

    Returns:
        The config, its name, and the folder to write to.

    Raises:
        ConfigError: The config cannot be read.
    """
    name = osp.splitext(osp.basename(args.config))[0]
    return (load_config(args.config, args.cfg_options), name,
            args.out or osp.join('work_dirs', args.folder, name))
