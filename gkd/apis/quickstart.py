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

CONFIGS = 'configs/quickstart'
TEACHER = CONFIGS + '/{}_efficientnet-lite0_fpn_tree-crowns.py'
STUDENT = CONFIGS + '/{}_r18-w8_fpn_tree-crowns.py'
DISTILLER = CONFIGS + '/gkd_{}_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'
FAMILIES = ('retinanet', 'faster_rcnn')
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
    """Prepare data, train a teacher, a plain and a distilled student, and print a table.

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
    stages = 2 + 2 * len(seeds)
    announce(1, stages, 'data: aerial photographs of tree crowns')
    prepare_tree_crowns()
    prepare_efficientnet_lite0()

    announce(2, stages, f'teacher: {family} on EfficientNet-Lite0, pretrained on ImageNet')
    teacher_dir = osp.join(work_dir, 'teacher')
    results = {'teacher': [run_stage(TEACHER.format(family), teacher_dir, epochs)]}
    checkpoint = osp.join(teacher_dir, 'latest.pth')
    for number, seed in enumerate(seeds):
        announce(3 + 2 * number, stages, f'plain student: {family} on a thin ResNet-18 from '
                                         f'scratch, seed {seed}')
        plain = run_stage(STUDENT.format(family), osp.join(work_dir, f'plain_seed{seed}'), epochs,
                          seed)
        announce(4 + 2 * number, stages, f'the same student, distilled, seed {seed}')
        distilled = run_stage(DISTILLER.format(family), osp.join(work_dir, f'gkd_seed{seed}'),
                              epochs, seed, {'model.teacher.checkpoint': checkpoint})
        results.setdefault('student, plain', []).append(plain)
        results.setdefault('student, distilled', []).append(distilled)

    table = format_table(results)
    write_atomically(osp.join(work_dir, 'table.md'), table)
    config = DISTILLER.format(family)
    latest = osp.relpath(osp.join(work_dir, f'gkd_seed{seeds[0]}', 'latest.pth'))
    print(f'\n{family} on tree crowns, validation, seeds {" ".join(map(str, seeds))}, '
          f'{(time.time() - started) / 60:.1f} min:\n\n{table}\n'
          f'evaluate:  bash tools/test.sh {config} {latest}\n'
          f'export:    python tools/export_student.py {config} {latest}')


def announce(number: int, total: int, what: str) -> None:
    """Say which stage begins."""
    print(f'\n=== {number}/{total}  {what}', flush=True)


def run_stage(config_path: str, work_dir: str, epochs: Optional[int], seed: int = 0,
              options: Optional[dict] = None) -> dict[str, float]:
    """Train one detector with the very command that a user would type.

    Args:
        config_path: Its config.
        work_dir: Its work dir; what is finished there is reused if nothing it depends on changed.
        epochs: Replaces the config's number of epochs.
        seed: Seed of weights and data order.
        options: Settings that replace the config's.

    Returns:
        Metrics of the last epoch.

    Raises:
        StageFailed: The training ended with an error.
    """
    config = load_config(config_path, options)
    last = str(epochs or config.runner.max_epochs)
    fingerprint = hashlib.sha256(
        f'{config.pretty_text} {seed} {last} {parents(config)}'.encode()).hexdigest()
    stamp = osp.join(work_dir, 'stage.txt')
    if read(stamp) != fingerprint:
        shutil.rmtree(work_dir, ignore_errors=True)
        os.makedirs(work_dir)
        write_atomically(stamp, fingerprint)
    history = osp.join(work_dir, 'evaluation.json')
    if last not in json.loads(read(history) or '{}'):
        command = [sys.executable, osp.join(REPOSITORY, 'tools', 'train.py'), config_path,
                   '--work-dir', work_dir, '--seed', str(seed), '--epochs', last]
        if options:
            command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
        if subprocess.run(command).returncode:
            raise StageFailed(f'training {config_path} failed, see above. The same command goes '
                              f'on from here.')
    else:
        print(f'finished before: {osp.relpath(work_dir)}')
    return json.loads(read(history))[last]


def parents(config) -> str:
    """Contents of the configs that a distillation config names, and its teacher's stamp."""
    if config.model.type != 'Distiller':
        return ''
    named = [load_config(config.model[role].config).pretty_text for role in ('teacher', 'student')]
    named.append(read(osp.join(osp.dirname(config.model.teacher.checkpoint), 'stage.txt')))
    return ' '.join(named)


def read(path: str) -> str:
    """Contents of a text file, empty if there is none."""
    if not osp.isfile(path):
        return ''
    with open(path) as file:
        return file.read()


def format_table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown table of the metrics in percent, mean and standard deviation over seeds.

    Example:
        >>> print(format_table({'teacher': [{'bbox_mAP': 0.15, 'bbox_mAP_50': 0.5}]}))
        |                    |           AP |         AP50 |
        | ------------------ | -----------: | -----------: |
        | teacher            |         15.0 |         50.0 |
        <BLANKLINE>
    """
    lines = [f'| {"":18} | ' + ' | '.join(f'{name:>12}' for name in METRICS) + ' |',
             f'| {"-" * 18} | ' + ' | '.join('-' * 11 + ':' for _ in METRICS) + ' |']
    for name, runs in results.items():
        cells = [f'{summarize([100 * run[key] for run in runs]):>12}' for key in METRICS.values()]
        lines.append(f'| {name:18} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def summarize(values: list[float]) -> str:
    """Mean of several runs, with their standard deviation if there is more than one."""
    mean = f'{statistics.mean(values):.1f}'
    return f'{mean} ± {statistics.stdev(values):.1f}' if len(values) > 1 else mean
