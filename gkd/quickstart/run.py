"""Run the quickstart, and show what it came to."""

from __future__ import annotations

import os
import os.path as osp
import time
from collections.abc import Mapping, Sequence
from typing import Optional

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.commands.processes import StageFailed, at_once
from gkd.comparison.compare import plan
from gkd.comparison.methods import OWN, choose_methods
from gkd.comparison.plan import Comparison
from gkd.comparison.run import run_all
from gkd.comparison.stages import Training
from gkd.files import made_folder, write_atomically
from gkd.frameworks import classes_of, image_info
from gkd.installed import mmdet_major
from gkd.looking.detections import draw_detections
from gkd.looking.door import prototype_datasets
from gkd.planning.door import load_config
from gkd.progress import silence
from gkd.prototypes import PrototypeBank
from gkd.prototypes.hook import latest_bank
from gkd.quickstart import CONFIGS, FOLDER
from gkd.report.comparison import format_gain
from gkd.report.names import PLAIN_STUDENT
from gkd.report.page import write_report
from gkd.report.prototypes import draw_prototypes
from gkd.repository import WORKPLACE, tool
from gkd.work_dir import PROTOTYPES, REPORT

ROWS = ('teacher', 'student', 'student, continued', 'student, distilled')


def quickstart(data: str = 'digit-scenes', family: str = 'retinanet', seeds: Sequence[int] = (0,),
               teacher_seed: int = 0, epochs: Optional[int] = None,
               work_dir: Optional[str] = None) -> None:
    """Prepare data, train teacher and student, distil the student, and print a table.

    As in the paper, the student is trained before it is distilled. It is compared with the same
    student trained further for as long without a teacher. The quickstart is a comparison of one
    method. Without a GPU, two stages run at once, because a small network runs best on one core.

    A stage that is finished is not run again; one that was interrupted resumes. Every training is
    a row of ``results.csv`` in the work dir.

    Args:
        data: ``'digit-scenes'`` or ``'tree-crowns'``.
        family: ``'retinanet'`` or ``'faster_rcnn'``.
        seeds: Both students are trained once per seed, from the same start and equally long.
        teacher_seed: Seed of the teacher.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything but the data goes (default: ``work_dirs/quickstart``, with
            MMDetection 3 ``work_dirs/quickstart/mmdet3``).

    Raises:
        GKDError: A stage failed.
    """
    started = time.time()
    name = f'{family}_{data}'
    work_dir = osp.join(osp.abspath(work_dir or osp.join(WORKPLACE, 'work_dirs/quickstart',
                                                         FOLDER)), name)
    os.chdir(WORKPLACE or os.curdir)
    path = CONFIGS[data].format(family)
    config = load_config(path)
    with made_folder(work_dir):  # before anything is downloaded or made
        prepare_efficientnet_lite0()
        comparison = plan(config, name, choose_methods(config, [OWN]), seeds, epochs, work_dir,
                          teacher_seed, fresh=True, detect=False)
    run_all(comparison, at_once(), osp.join(work_dir, 'results.csv'))
    if comparison.failed:
        raise StageFailed('A stage failed, see above. The same command resumes from there.')

    table = format_gain(metrics_by_row(comparison))
    write_atomically(osp.join(work_dir, 'table.md'), table)
    teacher = comparison.preparation[0]
    plain, distilled = (comparison.runs[method][seeds[-1]] for method in (PLAIN_STUDENT, OWN))
    with silence():  # pycocotools prints how it loads
        draw_pictures(teacher, plain, distilled, work_dir)
    report = osp.join(work_dir, REPORT)
    write_report(distilled.work_dir, [plain.work_dir], report)
    command = f'{path} {osp.relpath(distilled.checkpoint)}'
    what = f'{family} on {data}, MMDetection {mmdet_major()}'
    print(closing_text(what, seeds, started, table, dict(
        report=osp.relpath(report),
        pictures=f'{osp.relpath(work_dir)}/detections.png, prototypes.png',
        evaluate=f'bash {tool("test.sh")} {command}',
        export=f'python {tool("export_student.py")} {command}')))


def metrics_by_row(comparison: Comparison) -> dict[str, list[dict[str, float]]]:
    """Metrics of all runs, by the name of their row in the table."""
    teacher, *students = comparison.preparation
    rows = ([teacher], students, comparison.runs[PLAIN_STUDENT].values(),
            comparison.runs[OWN].values())
    return {name: [training.metrics() for training in trainings]
            for name, trainings in zip(ROWS, rows)}


def draw_pictures(teacher: Training, plain: Training, distilled: Training, work_dir: str) -> None:
    """Draw the detections of the three, and the prototypes of the last generation."""
    teachers, _, continued, taught = ROWS
    draw_detections([(title, training.settings, training.checkpoint) for title, training in (
        (teachers, teacher), (continued, plain), (taught, distilled))],
                    osp.join(work_dir, 'detections.png'))
    bank = latest_bank(osp.join(distilled.work_dir, PROTOTYPES), int(distilled.end))
    data = prototype_datasets(distilled.settings)[0]
    draw_prototypes(PrototypeBank.load(bank), image_info(data, 0)['folder'], classes_of(data), 0,
                    osp.join(work_dir, 'prototypes.png'))


def closing_text(what: str, seeds: Sequence[int], started: float, table: str,
                 places: Mapping[str, str]) -> str:
    """What the quickstart prints at its end.

    Args:
        what: The detectors and the data.
        seeds: Those of the students.
        started: When it started, in seconds since the epoch.
        table: The metrics.
        places: What can be looked at or run next, by name.
    """
    minutes = (time.time() - started) / 60
    lines = '\n'.join(f'{name + ":":11}{place}' for name, place in places.items())
    return (f'\n{what}, validation, seeds {" ".join(map(str, seeds))}, {minutes:.1f} min:\n\n'
            f'{table}\n{lines}')
