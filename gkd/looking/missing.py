"""Run the detectors of a report whose detections are not saved yet."""

from __future__ import annotations

import os
import os.path as osp
import tempfile
from collections.abc import Sequence

from gkd.errors import GKDError
from gkd.looking.door import save_detections
from gkd.report.runs import TEACHER, Run, read_runs, same_validation
from gkd.report.validation import Validation, read_detections
from gkd.work_dir import TEACHER_DETECTIONS


def detect_missing(work_dir: str, others: Sequence[str] = ()) -> None:
    """Save what those detectors find on the validation images.

    A teacher that cannot run on them is left out, with a message.

    Args:
        work_dir: Work dir of the run that the report is about.
        others: Work dirs that it is compared with.

    Raises:
        GKDError: A folder holds no training, or a detector cannot be run.
    """
    main, runs = read_runs(work_dir, others)
    if Validation(main.config).problem:
        return
    for trained in runs:
        if not trained.checkpoint or not same_validation(trained.config, main.config):
            continue
        if is_missing(trained):
            print(f'{trained.name}: detecting with {osp.relpath(trained.checkpoint)}')
            try:
                detect(trained)
            except GKDError:
                raise
            except Exception as error:
                if trained.role != TEACHER:
                    raise
                # It may need more than the student's data give: texts, proposals.
                print(f'{trained.name}: what it detects is left out, as it cannot detect in '
                      f'images as the student\'s data give them: {type(error).__name__}: {error}')


def is_missing(trained: Run) -> bool:
    """Whether a run lacks detections; those of a teacher may be of an earlier checkpoint."""
    if read_detections(trained.detections) is None:
        return True
    return osp.basename(trained.detections) == TEACHER_DETECTIONS and (
        osp.getmtime(trained.detections) < osp.getmtime(trained.checkpoint))


def detect(trained: Run) -> None:
    """Run a detector on its validation images and save what it finds as COCO results."""
    folder = osp.dirname(trained.detections)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.detections_') as unfinished:
        found = save_detections(trained.data_config(), trained.checkpoint, unfinished)
        os.replace(found, trained.detections)
