#!/usr/bin/env python
"""Make the report of a run, or compare runs. ``python -m gkd.report`` runs this, too."""

import argparse
import os
import os.path as osp
import tempfile

from gkd.commands import run
from gkd.report.page import write_report
from gkd.report.runs import read_runs, same_validation
from gkd.report.validation import Validation, read_detections
from gkd.running import test
from gkd.work_dir import REPORT, TEACHER_DETECTIONS


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work dir of a training, finished or not')
    parser.add_argument('others', nargs='*', metavar='OTHER',
                        help='work dirs to compare it with, such as the plain student\'s; the '
                             'teacher is found by itself')
    parser.add_argument('--output', help=f'file to write (default: WORK_DIR/{REPORT})')
    parser.add_argument('--no-detect', action='store_true',
                        help='run no detector; by default those without saved detections are run '
                             'on the validation images, once')
    return parser.parse_args()


def detect_missing(work_dir, others=()):
    """Run the detectors whose detections are not saved yet, and save what they find."""
    main, runs = read_runs(work_dir, others)
    if Validation(main.config).problem:
        return
    for trained in runs:
        if not trained.checkpoint or not same_validation(trained.config, main.config):
            continue
        if is_missing(trained):
            print(f'{trained.name}: detecting with {osp.relpath(trained.checkpoint)}')
            detect(trained)


def is_missing(trained):
    """Whether a run lacks detections; those of a teacher may be of an earlier checkpoint."""
    if read_detections(trained.detections) is None:
        return True
    return osp.basename(trained.detections) == TEACHER_DETECTIONS and (
        osp.getmtime(trained.detections) < osp.getmtime(trained.checkpoint))


def detect(trained):
    """Run a detector on its validation images and save what it finds as COCO results."""
    config = trained.data_config()
    config.data.test = config.data.val
    if 'val_dataloader' in config.data:
        config.data.test_dataloader = config.data.val_dataloader
    folder = osp.dirname(trained.detections)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.detections_') as unfinished:
        test(config, trained.checkpoint, format_only=True,
             eval_options=dict(jsonfile_prefix=osp.join(unfinished, 'results')))
        os.replace(osp.join(unfinished, 'results.bbox.json'), trained.detections)


def main():
    args = parse_args()
    if not args.no_detect:
        detect_missing(args.work_dir, args.others)
    path = args.output or osp.join(args.work_dir, REPORT)
    write_report(args.work_dir, args.others, path)
    print(f'wrote {path}')


if __name__ == '__main__':
    run(main)
