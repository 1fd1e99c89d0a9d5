#!/usr/bin/env python
"""Compare ways to distil a student with the student trained alone."""

import argparse

from gkd.commands import add_device_option, positive, run
from gkd.comparison.compare import compare
from gkd.datasets.tree_crowns import STRIPS


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
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
    parser.add_argument('--teacher-seed', type=int, default=0, help='seed of the teacher')
    parser.add_argument('--strip', choices=STRIPS,
                        help='strip of the tree crowns that validates; the others train')
    add_device_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    compare(args.config, args.methods, args.seed or args.seeds, args.epochs, args.work_dir,
            args.jobs, args.teacher_seed, args.strip, args.results, args.list)


if __name__ == '__main__':
    run(main)
