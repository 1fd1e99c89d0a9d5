#!/usr/bin/env python
"""Compare ways to distil a student with the student trained alone."""

import argparse

from gkd.commands import add_device_option, run
from gkd.commands.comparison import add_comparison_options
from gkd.datasets.tree_crowns import STRIPS
from gkd.experiments.compare import compare


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_comparison_options(parser)
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
