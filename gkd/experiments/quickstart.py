"""The quickstart: from nothing to a distilled detector and a table."""

from __future__ import annotations

import argparse
import os
import os.path as osp
import time
from collections.abc import Sequence
from typing import Optional

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.checkpoints import WORKPLACE, tool
from gkd.commands.processes import StageFailed, at_once
from gkd.comparison.methods import OWN, choose_methods
from gkd.comparison.run import run_all
from gkd.datasets import prepare_embedded
from gkd.experiments.comparison_plan import plan
from gkd.experiments.stages import Training
from gkd.files import write_atomically
from gkd.looking.detections import draw_detections
from gkd.prototypes import PrototypeBank
from gkd.prototypes.hook import latest_bank
from gkd.quickstart import FAMILIES, ROWS, closing_text, metrics_by_row
from gkd.report.comparison import format_gain
from gkd.report.names import PLAIN_STUDENT
from gkd.report.page import write_report
from gkd.report.prototypes import draw_prototypes
from gkd.running.config import load_config
from gkd.work_dir import PROTOTYPES, REPORT

CONFIGS = {
    'digit-scenes': 'configs/digits/gkd_{}_efficientnet-lite0_r18-w8_fpn_digit-scenes.py',
    'tree-crowns': 'configs/quickstart/gkd_{}_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'}


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the quickstart's own command-line options."""
    group.add_argument('--data', choices=CONFIGS, default='digit-scenes',
                       help='handwritten digits on photographs, or trees on aerial photographs')
    group.add_argument('--family', choices=FAMILIES, default='retinanet',
                       help='detector of teacher and student')
    group.add_argument('--seeds', type=int, nargs='+', default=[0],
                       help='train both students once with each seed')
    group.add_argument('--teacher-seed', type=int, default=0, help='train the teacher with it')


def quickstart(data: str = 'digit-scenes', family: str = 'retinanet', seeds: Sequence[int] = (0,),
               teacher_seed: int = 0, epochs: Optional[int] = None,
               work_dir: Optional[str] = None) -> None:
    """Prepare data, train teacher and student, distil the student, and print a table.

    As in the paper, the student is trained before it is distilled. It is compared with the same
    student trained further for as long without a teacher. The quickstart is a comparison of one
    method. Without a GPU, two stages run at once, because a small network runs best on one core.

    A stage that is finished is not run again; one that was interrupted goes on.

    Args:
        data: ``'digit-scenes'`` or ``'tree-crowns'``.
        family: ``'retinanet'`` or ``'faster_rcnn'``.
        seeds: Both students are trained once per seed, from the same start and equally long.
        teacher_seed: Seed of the teacher.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything but the data goes (default: ``work_dirs/quickstart``).

    Raises:
        GKDError: A stage failed.
    """
    started = time.time()
    name = f'{family}_{data}'
    work_dir = osp.join(osp.abspath(work_dir or osp.join(WORKPLACE, 'work_dirs/quickstart')), name)
    os.chdir(WORKPLACE or os.curdir)
    path = CONFIGS[data].format(family)
    config = load_config(path)
    prepare_embedded(config.data.train.ann_file)
    prepare_efficientnet_lite0()
    comparison = plan(config, name, choose_methods(config, [OWN]), seeds, epochs, work_dir,
                      teacher_seed, fresh=True, detect=False)
    run_all(comparison, at_once(), osp.join(work_dir, 'results.csv'))
    if comparison.failed:
        raise StageFailed('A stage failed, see above. The same command goes on from there.')

    table = format_gain(metrics_by_row(comparison))
    write_atomically(osp.join(work_dir, 'table.md'), table)
    teacher = comparison.preparation[0]
    plain, distilled = (comparison.runs[method][seeds[-1]] for method in (PLAIN_STUDENT, OWN))
    draw_pictures(teacher, plain, distilled, work_dir)
    report = osp.join(work_dir, REPORT)
    write_report(distilled.work_dir, [plain.work_dir], report)
    command = f'{path} {osp.relpath(distilled.checkpoint)}'
    print(closing_text(f'{family} on {data}', seeds, started, table, dict(
        report=osp.relpath(report),
        pictures=f'{osp.relpath(work_dir)}/detections.png, prototypes.png',
        evaluate=f'bash {tool("test.sh")} {command}',
        export=f'python {tool("export_student.py")} {command}')))


def draw_pictures(teacher: Training, plain: Training, distilled: Training, work_dir: str) -> None:
    """Draw the detections of the three, and the prototypes of the last generation."""
    teachers, _, continued, taught = ROWS
    draw_detections([(title, training.settings, training.checkpoint) for title, training in (
        (teachers, teacher), (continued, plain), (taught, distilled))],
                    osp.join(work_dir, 'detections.png'))
    folder = osp.join(distilled.work_dir, PROTOTYPES)
    data = distilled.settings.data.train
    draw_prototypes(PrototypeBank.load(latest_bank(folder, int(distilled.last_epoch))),
                    data.img_prefix, data.classes, 0, osp.join(work_dir, 'prototypes.png'))
