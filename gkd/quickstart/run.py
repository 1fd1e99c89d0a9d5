"""Run the stages of the quickstart, and show what they came to."""

from __future__ import annotations

import os.path as osp
import time
from collections.abc import Mapping, Sequence

from gkd.checkpoints import tool
from gkd.commands.processes import StageFailed, at_once
from gkd.comparison.methods import OWN
from gkd.comparison.plan import Comparison
from gkd.comparison.run import run_all
from gkd.comparison.stages import Training
from gkd.files import write_atomically
from gkd.frameworks import classes_of, image_info
from gkd.looking.detections import draw_detections
from gkd.looking.door import prototype_datasets
from gkd.progress import silence
from gkd.prototypes import PrototypeBank
from gkd.prototypes.hook import latest_bank
from gkd.report.comparison import format_gain
from gkd.report.names import PLAIN_STUDENT
from gkd.report.page import write_report
from gkd.report.prototypes import draw_prototypes
from gkd.work_dir import PROTOTYPES, REPORT

ROWS = ('teacher', 'student', 'student, continued', 'student, distilled')


def run_quickstart(comparison: Comparison, what: str, path: str, seeds: Sequence[int],
                   started: float) -> None:
    """Run what is not finished, write table, pictures and report, and print the table.

    Args:
        comparison: The stages.
        what: The detectors and the data.
        path: The distillation config.
        seeds: Those of the students.
        started: When it started, in seconds since the epoch.

    Raises:
        StageFailed: A stage failed.
    """
    work_dir = comparison.work_dir
    run_all(comparison, at_once(), osp.join(work_dir, 'results.csv'))
    if comparison.failed:
        raise StageFailed('A stage failed, see above. The same command goes on from there.')

    table = format_gain(metrics_by_row(comparison))
    write_atomically(osp.join(work_dir, 'table.md'), table)
    teacher = comparison.preparation[0]
    plain, distilled = (comparison.runs[method][seeds[-1]] for method in (PLAIN_STUDENT, OWN))
    with silence():  # pycocotools tells how it loads
        draw_pictures(teacher, plain, distilled, work_dir)
    report = osp.join(work_dir, REPORT)
    write_report(distilled.work_dir, [plain.work_dir], report)
    command = f'{path} {osp.relpath(distilled.checkpoint)}'
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
    bank = latest_bank(osp.join(distilled.work_dir, PROTOTYPES), int(distilled.last_epoch))
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
