"""The quickstart: from nothing to a distilled detector and a table, on real images."""

from __future__ import annotations

import argparse
import os
import os.path as osp
import time
from collections.abc import Sequence
from typing import Optional

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.checkpoints import WORKPLACE, tool
from gkd.datasets import prepare_tree_crowns
from gkd.datasets.coco_eval import METRICS
from gkd.experiments.stages import Schedule, Training, children_end_too
from gkd.files import write_atomically
from gkd.looking.detections import draw_detections
from gkd.progress import say
from gkd.prototypes import PrototypeBank
from gkd.prototypes.hook import latest_bank
from gkd.report.comparison import cell, gain_text
from gkd.report.page import write_report
from gkd.report.prototypes import draw_prototypes
from gkd.running.config import load_config
from gkd.work_dir import LATEST, PROTOTYPES, REPORT

CONFIGS = 'configs/quickstart'
TEACHER = CONFIGS + '/{}_efficientnet-lite0_fpn_tree-crowns.py'
STUDENT = CONFIGS + '/{}_r18-w8_fpn_tree-crowns.py'
CONTINUED = CONFIGS + '/{}_r18-w8_fpn_continued_tree-crowns.py'
DISTILLER = CONFIGS + '/gkd_{}_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'
FAMILIES = ('retinanet', 'faster_rcnn')
LOG_INTERVAL = 10  # steps; a line every few seconds on two cores
SHOWN = ('AP', 'AP50')


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the quickstart's own command-line options."""
    group.add_argument('--family', choices=FAMILIES, default='retinanet',
                       help='detector of teacher and student')
    group.add_argument('--seeds', type=int, nargs='+', default=[0],
                       help='train both students once with each seed')


def quickstart(family: str = 'retinanet', seeds: Sequence[int] = (0,),
               epochs: Optional[int] = None, work_dir: Optional[str] = None) -> None:
    """Prepare data, train teacher and student, distil the student, and print a table.

    As in the paper, the student is trained before it is distilled; the yardstick is the same
    student trained on for as long without a teacher.

    A stage that is finished is not run again; one that was interrupted goes on.

    Args:
        family: ``'retinanet'`` or ``'faster_rcnn'``.
        seeds: Both students are trained once a seed, from the same start and equally long.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything but the data goes (default: ``work_dirs/quickstart``).

    Raises:
        GKDError: A stage failed.
    """
    started = time.time()
    work_dir = osp.join(osp.abspath(work_dir or osp.join(WORKPLACE, 'work_dirs/quickstart')),
                        family)
    os.chdir(WORKPLACE or os.curdir)
    schedule = Schedule(['data'] + ['training'] * (1 + 3 * len(seeds)))
    schedule.begin('data: aerial photographs of tree crowns')
    prepare_tree_crowns()
    prepare_efficientnet_lite0()
    schedule.end('data')

    schedule.begin(f'teacher: {family} on EfficientNet-Lite0, pretrained on ImageNet')
    teacher = osp.join(work_dir, 'teacher', LATEST)
    results = {'teacher': [run_stage(schedule, TEACHER.format(family), teacher, epochs)]}
    for seed in seeds:
        student, plain, distilled = (osp.join(work_dir, f'{name}_seed{seed}', LATEST)
                                     for name in ('student', 'plain', 'gkd'))
        schedule.begin(f'student: {family} on a thin ResNet-18 from scratch, seed {seed}')
        results.setdefault('student', []).append(
            run_stage(schedule, STUDENT.format(family), student, epochs, seed))
        schedule.begin(f'the student goes on alone, seed {seed}')
        results.setdefault('student, continued', []).append(
            run_stage(schedule, CONTINUED.format(family), plain, epochs, seed,
                      {'load_from': student}))
        schedule.begin(f'the student goes on with the teacher, seed {seed}')
        results.setdefault('student, distilled', []).append(
            run_stage(schedule, DISTILLER.format(family), distilled, epochs, seed,
                      {'model.teacher.checkpoint': teacher, 'model.student.checkpoint': student}))

    table = format_table(results)
    write_atomically(osp.join(work_dir, 'table.md'), table)
    draw_pictures(family, work_dir, teacher, plain, distilled, epochs)
    report = osp.join(work_dir, REPORT)
    write_report(osp.dirname(distilled), [osp.dirname(plain)], report)
    command = f'{DISTILLER.format(family)} {osp.relpath(distilled)}'
    print(f'\n{family} on tree crowns, validation, seeds {" ".join(map(str, seeds))}, '
          f'{(time.time() - started) / 60:.1f} min:\n\n{table}\n'
          f'report:    {osp.relpath(report)}\n'
          f'pictures:  {osp.relpath(work_dir)}/detections.png, prototypes.png\n'
          f'evaluate:  bash {tool("test.sh")} {command}\n'
          f'export:    python {tool("export_student.py")} {command}')


def draw_pictures(family: str, work_dir: str, teacher: str, plain: str, distilled: str,
                  epochs: Optional[int]) -> None:
    """Draw the detections of the three checkpoints, and the prototypes of the last generation."""
    config = load_config(DISTILLER.format(family))
    draw_detections([('teacher', load_config(TEACHER.format(family)), teacher),
                     ('student, continued', load_config(CONTINUED.format(family)), plain),
                     ('student, distilled', config, distilled)],
                    osp.join(work_dir, 'detections.png'))
    folder = osp.join(osp.dirname(distilled), PROTOTYPES)
    last = epochs or config.runner.max_epochs
    draw_prototypes(PrototypeBank.load(latest_bank(folder, last)),
                    config.data.train.img_prefix, config.data.train.classes, 0,
                    osp.join(work_dir, 'prototypes.png'))


def run_stage(schedule: Schedule, config: str, checkpoint: str, epochs: Optional[int],
              seed: int = 0, options: Optional[dict] = None) -> dict[str, float]:
    """Train one detector, unless that is done; returns the metrics of the last epoch."""
    stage = Training(config, checkpoint, epochs, seed, options or {}, LOG_INTERVAL)
    if stage.prepare():
        say(f'finished before: {osp.relpath(stage.work_dir)}')
        schedule.end('training')
    else:
        started = time.time()
        with children_end_too():
            stage.run()
        schedule.end('training', time.time() - started)
    return stage.metrics()


def format_table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown table of the metrics in percent, mean over seeds, and of the gain.

    The last row pairs the last two by seed: both students of a seed had the same start and saw the
    same images in the same order, so their difference varies less than either does. Several seeds
    give its 95 % confidence interval (Student's t).

    Example:
        >>> print(format_table({'teacher': [{'bbox_mAP': 0.15, 'bbox_mAP_50': 0.5}],
        ...                     'alone': [{'bbox_mAP': 0.11, 'bbox_mAP_50': 0.4}],
        ...                     'distilled': [{'bbox_mAP': 0.13, 'bbox_mAP_50': 0.45}]}))
        |                    |                 AP |               AP50 |
        | ------------------ | -----------------: | -----------------: |
        | teacher            |               15.0 |               50.0 |
        | alone              |               11.0 |               40.0 |
        | distilled          |               13.0 |               45.0 |
        | gain               |               +2.0 |               +5.0 |
        <BLANKLINE>
    """
    lines = [f'| {"":18} | ' + ' | '.join(f'{name:>18}' for name in SHOWN) + ' |',
             f'| {"-" * 18} | ' + ' | '.join('-' * 17 + ':' for _ in SHOWN) + ' |']
    keys = [METRICS[name] for name in SHOWN]
    for name, runs in results.items():
        cells = [f'{cell([100 * run[key] for run in runs]):>18}' for key in keys]
        lines.append(f'| {name:18} | ' + ' | '.join(cells) + ' |')
    *_, alone, distilled = results.values()
    gains = [[100 * (after[key] - before[key]) for before, after in zip(alone, distilled)]
             for key in keys]
    lines.append(f'| {"gain":18} | ' + ' | '.join(f'{gain_text(gain):>18}'
                                                  for gain in gains) + ' |')
    return '\n'.join(lines) + '\n'
