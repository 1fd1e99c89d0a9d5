"""The quickstart: from nothing to a distilled detector and a table, on real images."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import os.path as osp
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Optional

from gkd.apis.config import load_config
from gkd.apis.files import write_atomically
from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.datasets import prepare_tree_crowns
from gkd.detectors.source import REPOSITORY
from gkd.errors import GKDError
from gkd.prototypes import PrototypeBank
from gkd.prototypes.hook import latest_bank
from gkd.reporting.detections import draw_detections
from gkd.reporting.prototypes import draw_prototypes

CONFIGS = 'configs/quickstart'
TEACHER = CONFIGS + '/{}_efficientnet-lite0_fpn_tree-crowns.py'
STUDENT = CONFIGS + '/{}_r18-w8_fpn_tree-crowns.py'
CONTINUED = CONFIGS + '/{}_r18-w8_fpn_continued_tree-crowns.py'
DISTILLER = CONFIGS + '/gkd_{}_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'
FAMILIES = ('retinanet', 'faster_rcnn')
STAMP = 'stage.txt'
LOG_INTERVAL = 10  # steps; a line every few seconds on two cores
METRICS = {'AP': 'bbox_mAP', 'AP50': 'bbox_mAP_50'}


class StageFailed(GKDError):
    """A stage ended with an error, which it has printed itself."""


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
    work_dir = osp.join(osp.abspath(work_dir or osp.join(REPOSITORY, 'work_dirs/quickstart')),
                        family)
    os.chdir(REPOSITORY)
    stages = 2 + 3 * len(seeds)
    announce(1, stages, 'data: aerial photographs of tree crowns')
    prepare_tree_crowns()
    prepare_efficientnet_lite0()

    announce(2, stages, f'teacher: {family} on EfficientNet-Lite0, pretrained on ImageNet')
    teacher = osp.join(work_dir, 'teacher', 'latest.pth')
    results = {'teacher': [run_stage(TEACHER.format(family), teacher, epochs)]}
    for number, seed in enumerate(seeds):
        student, plain, distilled = (osp.join(work_dir, f'{name}_seed{seed}', 'latest.pth')
                                     for name in ('student', 'plain', 'gkd'))
        announce(3 + 3 * number, stages, f'student: {family} on a thin ResNet-18 from scratch, '
                                         f'seed {seed}')
        results.setdefault('student', []).append(
            run_stage(STUDENT.format(family), student, epochs, seed))
        announce(4 + 3 * number, stages, f'the student goes on alone, seed {seed}')
        results.setdefault('student, continued', []).append(
            run_stage(CONTINUED.format(family), plain, epochs, seed, {'load_from': student}))
        announce(5 + 3 * number, stages, f'the student goes on with the teacher, seed {seed}')
        results.setdefault('student, distilled', []).append(
            run_stage(DISTILLER.format(family), distilled, epochs, seed,
                      {'model.teacher.checkpoint': teacher, 'model.student.checkpoint': student}))

    table = format_table(results)
    write_atomically(osp.join(work_dir, 'table.md'), table)
    draw_pictures(family, work_dir, teacher, plain, distilled, epochs)
    command = f'{DISTILLER.format(family)} {osp.relpath(distilled)}'
    print(f'\n{family} on tree crowns, validation, seeds {" ".join(map(str, seeds))}, '
          f'{(time.time() - started) / 60:.1f} min:\n\n{table}\n'
          f'pictures:  {osp.relpath(work_dir)}/detections.png, prototypes.png\n'
          f'evaluate:  bash tools/test.sh {command}\n'
          f'export:    python tools/export_student.py {command}')


def draw_pictures(family: str, work_dir: str, teacher: str, plain: str, distilled: str,
                  epochs: Optional[int]) -> None:
    """Draw the detections of the three checkpoints, and the prototypes of the last generation."""
    config = load_config(DISTILLER.format(family))
    draw_detections([('teacher', load_config(TEACHER.format(family)), teacher),
                     ('student, continued', load_config(CONTINUED.format(family)), plain),
                     ('student, distilled', config, distilled)],
                    osp.join(work_dir, 'detections.png'))
    folder = osp.join(osp.dirname(distilled), 'prototypes')
    last = epochs or config.runner.max_epochs
    draw_prototypes(PrototypeBank.load(latest_bank(folder, last)),
                    config.data.train.img_prefix, config.data.train.classes, 0,
                    osp.join(work_dir, 'prototypes.png'))


def announce(number: int, total: int, what: str) -> None:
    """Say which stage begins."""
    print(f'\n=== {number}/{total}  {what}', flush=True)


def run_stage(config_path: str, checkpoint: str, epochs: Optional[int], seed: int = 0,
              options: Optional[dict] = None) -> dict[str, float]:
    """Train one detector with the very command that a user would type.

    Args:
        config_path: Its config.
        checkpoint: Checkpoint to train, the latest of its work dir. What is finished there is
            reused if nothing it depends on changed.
        epochs: Replaces the config's number of epochs.
        seed: Seed of weights and data order.
        options: Settings that replace the config's.

    Returns:
        Metrics of the last epoch.

    Raises:
        StageFailed: The training ended with an error.
    """
    work_dir = osp.dirname(checkpoint)
    config = load_config(config_path, options)
    last = str(epochs or config.runner.max_epochs)
    depends_on = [config.pretty_text, seed, last, *map(stamp_of, (options or {}).values())]
    if config.model.type == 'Distiller':
        depends_on += [load_config(config.model[role].config).pretty_text
                       for role in ('teacher', 'student')]
    fingerprint = hashlib.sha256(repr(depends_on).encode()).hexdigest()
    stamp = osp.join(work_dir, STAMP)
    if read(stamp) != fingerprint:
        if osp.isfile(stamp):
            shutil.rmtree(work_dir)
        os.makedirs(work_dir, exist_ok=True)
        write_atomically(stamp, fingerprint)
    history = osp.join(work_dir, 'evaluation.json')
    if last not in json.loads(read(history) or '{}'):
        settings = {'log_config.interval': LOG_INTERVAL, **(options or {})}
        command = [sys.executable, osp.join(REPOSITORY, 'tools', 'train.py'), config_path,
                   '--work-dir', work_dir, '--seed', str(seed), '--epochs', last,
                   '--cfg-options', *(f'{key}={value}' for key, value in settings.items())]
        if subprocess.run(command).returncode:
            raise StageFailed(f'training {config_path} failed, see above. The same command goes '
                              f'on from here.')
    else:
        print(f'finished before: {osp.relpath(work_dir)}')
    return json.loads(read(history))[last]


def stamp_of(checkpoint: str) -> str:
    """What an earlier stage's checkpoint was made from."""
    return read(osp.join(osp.dirname(checkpoint), STAMP))


def read(path: str) -> str:
    """Contents of a text file, empty if there is none."""
    if not osp.isfile(path):
        return ''
    with open(path) as file:
        return file.read()


def format_table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown table of the metrics in percent, mean and standard deviation over seeds.

    The last row pairs the last two by seed: both students of a seed had the same start and saw the
    same images in the same order, so their difference varies less than either does.

    Example:
        >>> print(format_table({'teacher': [{'bbox_mAP': 0.15, 'bbox_mAP_50': 0.5}],
        ...                     'alone': [{'bbox_mAP': 0.11, 'bbox_mAP_50': 0.4}],
        ...                     'distilled': [{'bbox_mAP': 0.13, 'bbox_mAP_50': 0.45}]}))
        |                    |           AP |         AP50 |
        | ------------------ | -----------: | -----------: |
        | teacher            |         15.0 |         50.0 |
        | alone              |         11.0 |         40.0 |
        | distilled          |         13.0 |         45.0 |
        | gain               |         +2.0 |         +5.0 |
        <BLANKLINE>
    """
    lines = [f'| {"":18} | ' + ' | '.join(f'{name:>12}' for name in METRICS) + ' |',
             f'| {"-" * 18} | ' + ' | '.join('-' * 11 + ':' for _ in METRICS) + ' |']
    for name, runs in results.items():
        cells = [f'{summarize([100 * run[key] for run in runs]):>12}' for key in METRICS.values()]
        lines.append(f'| {name:18} | ' + ' | '.join(cells) + ' |')
    *_, alone, distilled = results.values()
    gains = [[100 * (after[key] - before[key]) for before, after in zip(alone, distilled)]
             for key in METRICS.values()]
    lines.append(f'| {"gain":18} | ' + ' | '.join(f'{summarize(gain, "+"):>12}'
                                                  for gain in gains) + ' |')
    return '\n'.join(lines) + '\n'


def summarize(values: list[float], sign: str = '-') -> str:
    """Mean of several runs, with their standard deviation if there is more than one."""
    mean = f'{statistics.mean(values):{sign}.1f}'
    return f'{mean} ± {statistics.stdev(values):.1f}' if len(values) > 1 else mean
