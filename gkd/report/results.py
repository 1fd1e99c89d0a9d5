"""Results of single trainings, one row each, in a CSV that several processes may write."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import os.path as osp
import platform
import re
import subprocess
from dataclasses import asdict, astuple, dataclass, fields

import mmdet
import torch

import gkd
from gkd.datasets.coco_eval import METRICS
from gkd.errors import DataError
from gkd.repository import REPOSITORY

COLUMN_OF = dict(zip(METRICS.values(), ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')))
TEACHER, STUDENT, PLAIN = 'teacher', 'student', 'plain'  # values of `method` that teach nothing


@dataclass(frozen=True)
class Result:
    """The result of one training; a row of the CSV. All values are text, as in the file.

    Attributes:
        data: The data set, such as ``'digit-scenes'``.
        family: The detectors' type, such as ``'RetinaNet'``; of teacher and student if they
            differ, such as ``'FasterRCNN to RetinaNet'``.
        teacher_seed: The teacher's seed; empty for a training without a teacher.
        student_seed: The student's seed; empty for the teacher's own training.
        strip: The part of the data used for validation, if several parts can be.
        method: Name of what was taught; ``'plain'`` is the student that was trained further alone,
            ``'student'`` the one that all start from, ``'teacher'`` the teacher.
        options: Settings that were replaced for this run, ``KEY=VALUE``, divided by blanks.
        settings: What the method's name stood for, as JSON.
        AP: AP on the validation data after the last epoch, in percent.
        AP50: Likewise, as are the following.
        AP75: Empty, like the other APs, if there was nothing to measure.
        APs: AP of COCO's small objects.
        APm: AP of medium objects.
        APl: AP of large objects.
        machine: The processor that trained.
        version: Versions of gkd, with the commit if it is known, of torch and of MMDetection.
    """

    data: str
    family: str
    teacher_seed: str
    student_seed: str
    strip: str
    method: str
    options: str
    settings: str
    AP: str
    AP50: str
    AP75: str
    APs: str
    APm: str
    APl: str
    machine: str
    version: str

    @property
    def run(self) -> tuple[str, ...]:
        """What identifies the training; another one with the same values would repeat it."""
        return astuple(self)[:7] + (self.machine,)


COLUMNS = [column.name for column in fields(Result)]


def metrics_text(metrics: dict[str, float]) -> dict[str, str]:
    """MMDetection's metrics in percent, as they stand in a row; -1 stands for no such objects.

    Example:
        >>> metrics_text({'bbox_mAP': 0.251, 'bbox_mAP_50': 0.5, 'bbox_mAP_75': 0.0,
        ...               'bbox_mAP_s': -1.0})
        {'AP': '25.1', 'AP50': '50', 'AP75': '0', 'APs': '', 'APm': '', 'APl': ''}
    """
    return {name: f'{100 * metrics[key]:.6g}' if metrics.get(key, -1) >= 0 else ''
            for key, name in COLUMN_OF.items()}


def read_results(path: str) -> list[Result]:
    """Read the rows of a CSV; none if there is no file.

    If a training has more than one row, the last row counts.

    Raises:
        DataError: The file is no such CSV.
    """
    if not osp.isfile(path):
        return []
    with open(path, encoding='utf-8', newline='') as file:
        return parse(file.read(), path)


def parse(text: str, path: str) -> list[Result]:
    """Rows of the text of a CSV; ``path`` is for messages."""
    reader = csv.reader(io.StringIO(text))
    head = next(reader, None)
    if head != COLUMNS:
        raise DataError(f'{path}: the first line must be {",".join(COLUMNS)}')
    results = {}
    for row in reader:
        if len(row) != len(COLUMNS):
            raise DataError(f'{path}, line {reader.line_num}: {len(row)} values for '
                            f'{len(COLUMNS)} columns.')
        result = Result(*row)
        results[result.run] = result
    return list(results.values())


def append_result(path: str, result: Result) -> None:
    """Append a row unless the same row is there; other processes may append at the same time."""
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    with open(path, 'a+', encoding='utf-8', newline='') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if text and result in parse(text, path):
            return
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if not text:
            writer.writeheader()
        writer.writerow(asdict(result))
        file.flush()
        os.fsync(file.fileno())


def machine() -> str:
    """Name of the GPU, or of the processor if there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def processor() -> str:
    """Name of the processor."""
    if osp.isfile('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            model = re.search(r'model name\s*: (.+)', file.read())
        if model:
            return model[1]
    return platform.processor() or platform.machine()


def version() -> str:
    """Versions of gkd, torch and MMDetection; a clone's commit, with + if it was changed."""
    def git(*command: str) -> str:
        try:
            return subprocess.run(['git', '-C', REPOSITORY, *command], capture_output=True,
                                  text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ''

    commit = git('rev-parse', '--short', 'HEAD')
    if commit and git('status', '--porcelain', '--untracked-files=no', '--', 'gkd', 'configs'):
        commit += '+'
    return (f'gkd {gkd.__version__}{f" ({commit})" if commit else ""}, '
            f'torch {torch.__version__}, mmdet {mmdet.__version__}')
