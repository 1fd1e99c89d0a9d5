#!/usr/bin/env python
"""Make the report of a run, or compare runs. ``python -m gkd.report`` runs this, too."""

import argparse
import os.path as osp

from gkd.commands import run
from gkd.report.page import write_report
from gkd.work_dir import REPORT


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work dir of a training, finished or not')
    parser.add_argument('others', nargs='*', metavar='OTHER',
                        help='work dirs to compare it with, such as the plain student\'s; the '
                             'teacher is found automatically')
    parser.add_argument('--output', help=f'file to write (default: WORK_DIR/{REPORT})')
    parser.add_argument('--no-detect', action='store_true',
                        help='run no detector; by default those without saved detections are run '
                             'on the validation images, once')
    return parser.parse_args()


def main():
    args = parse_args()
    if not args.no_detect:
        from gkd.looking.missing import detect_missing  # what it runs with is slow to import
        detect_missing(args.work_dir, args.others)
    path = args.output or osp.join(args.work_dir, REPORT)
    write_report(args.work_dir, args.others, path)
    print(f'wrote {path}')


if __name__ == '__main__':
    run(main)
