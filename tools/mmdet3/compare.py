#!/usr/bin/env python
"""Compare ways to distil a student with the student trained alone, with MMDetection 3."""

import argparse

import gkd  # noqa: F401  isort: skip  (says what is missing, if anything is)
from gkd.commands import add_device_option, run
from gkd.commands.comparison import add_comparison_options
from gkd.comparison.mmdet3 import compare


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_comparison_options(parser)
    add_device_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    compare(args.config, args.methods, args.seed or args.seeds, args.epochs, args.work_dir,
            args.jobs, args.results, args.list)


if __name__ == '__main__':
    run(main)
