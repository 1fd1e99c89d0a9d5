#!/usr/bin/env python
"""Compare ways to distil a student with the student trained alone."""

import argparse

from gkd.experiments.compare import compare
from gkd.running.cli import positive, run


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='distillation config')
    parser.add_argument('--methods', nargs='+', metavar='METHOD',
                        help='gkd (the config\'s own knowledge), those of '
                             'configs/_base_/comparison.py and of `methods` in the config; + '
                             'combines them, as in gkd+fgd (default: each of them alone)')
    parser.add_argument('--seeds', type=positive, default=3, help='runs of each method')
    parser.add_argument('--epochs', type=positive, help='replaces the config\'s number of epochs')
    parser.add_argument('--work-dir', help='where everything goes '
                                           '(default: work_dirs/compare/NAME_OF_CONFIG)')
    parser.add_argument('--jobs', type=positive, default=1,
                        help='trainings at once; they share CPU cores and GPUs, so that their '
                             'times only compare if nothing else runs')
    return parser.parse_args()


def main():
    args = parse_args()
    compare(args.config, args.methods, args.seeds, args.epochs, args.work_dir, args.jobs)


if __name__ == '__main__':
    run(main)
