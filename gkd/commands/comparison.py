"""Options of the comparison of methods."""

from __future__ import annotations

import argparse

from gkd.commands.options import positive


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Add what is compared, how often, and where results go."""
    parser.add_argument('config', help='distillation config')
    parser.add_argument('--methods', nargs='+', metavar='METHOD',
                        help='gkd (the config\'s own knowledge), those of '
                             'configs/_base_/comparison.py and of `methods` in the config, '
                             'variants of gkd such as no-global; + combines them, as in gkd+fgd '
                             '(default: each method alone)')
    parser.add_argument('--seeds', type=positive, default=3,
                        help='runs of each method, with seeds from 0 on')
    parser.add_argument('--seed', type=int, nargs='+', help='these seeds instead')
    parser.add_argument('--epochs', type=positive, help='replaces the config\'s number of epochs')
    parser.add_argument('--work-dir', help='where everything goes '
                                           '(default: work_dirs/compare/NAME_OF_CONFIG)')
    parser.add_argument('--jobs', type=positive, default=1,
                        help='trainings at once; they share CPU cores and GPUs, so that their '
                             'times only compare if nothing else runs')
    parser.add_argument('--results', metavar='CSV', help='file to append a row to for every '
                                                         'training (default: results.csv in the '
                                                         'work dir)')
    parser.add_argument('--list', action='store_true',
                        help='print which stages are finished and which are left, and run none')
