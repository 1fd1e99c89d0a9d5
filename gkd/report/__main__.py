"""``python -m gkd.report WORK_DIR [OTHER ...]``: make a run's report, or compare runs."""

from __future__ import annotations

import argparse
import os
import os.path as osp
import tempfile
from collections.abc import Sequence

from gkd import running as apis
from gkd.report.page import write_report
from gkd.report.recorder import REPORT
from gkd.report.runs import TEACHER_DETECTIONS, Run, read_runs, same_validation
from gkd.report.validation import Validation, read_detections
from gkd.running.cli import run as run_tool


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='python -m gkd.report', description=__doc__)
    parser.add_argument('work_dir', help='work dir of a training, finished or not')
    parser.add_argument('others', nargs='*', metavar='OTHER',
                        help='work dirs to compare it with, such as the plain student\'s; the '
                             'teacher is found by itself')
    parser.add_argument('--output', help=f'file to write (default: WORK_DIR/{REPORT})')
    parser.add_argument('--no-detect', action='store_true',
                        help='run no detector; by default those without saved detections are run '
                             'on the validation images, once')
    return parser.parse_args()


def detect_missing(work_dir: str, others: Sequence[str] = ()) -> None:
    """Run the detectors whose detections are not saved yet, and save what they find.

    Args:
        work_dir: Work dir of the run that the report is about.
        others: Work dirs to compare it with.

    Raises:
        GKDError: A checkpoint does not fit its config.
    """
    main, runs = read_runs(work_dir, others)
    if Validation(main.config).problem:
        return
    for run in runs:
        if run.checkpoint and same_validation(run.config, main.config) and is_missing(run):
            print(f'{run.name}: detecting with {osp.relpath(run.checkpoint)}')
            detect(run)


def is_missing(run: Run) -> bool:
    """Whether a run lacks detections; those of a teacher may be of an earlier checkpoint."""
    if read_detections(run.detections) is None:
        return True
    return osp.basename(run.detections) == TEACHER_DETECTIONS and (
        osp.getmtime(run.detections) < osp.getmtime(run.checkpoint))


def detect(run: Run) -> None:
    """Run a detector on its validation images and save what it finds as COCO results."""
    config = run.data_config()
    config.data.test = config.data.val
    if 'val_dataloader' in config.data:
        config.data.test_dataloader = config.data.val_dataloader
    folder = osp.dirname(run.detections)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.detections_') as unfinished:
        apis.test(config, run.checkpoint, format_only=True,
                  eval_options=dict(jsonfile_prefix=osp.join(unfinished, 'results')))
        os.replace(osp.join(unfinished, 'results.bbox.json'), run.detections)


def main() -> None:
    """Make the report."""
    args = parse_args()
    if not args.no_detect:
        detect_missing(args.work_dir, args.others)
    path = args.output or osp.join(args.work_dir, REPORT)
    write_report(args.work_dir, args.others, path)
    print(f'wrote {path}')


if __name__ == '__main__':
    run_tool(main)
