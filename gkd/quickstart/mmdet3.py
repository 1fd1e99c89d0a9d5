"""The quickstart with MMDetection 3; tools/mmdet3/train.py runs it without a config."""

from __future__ import annotations

import os
import os.path as osp
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Optional

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.checkpoints import WORKPLACE, tool
from gkd.commands.processes import (
    StageFailed,
    at_once,
    children_end_too,
    how_it_ended,
    run_tool,
    setting,
    shares,
)
from gkd.datasets import prepare_embedded
from gkd.engine.commands import load_config
from gkd.files import write_atomically
from gkd.progress import say
from gkd.quickstart import FAMILIES, ROWS, closing_text
from gkd.report.comparison import format_gain
from gkd.report.results import (
    PLAIN,
    STUDENT,
    TEACHER,
    Result,
    append_result,
    machine,
    metrics_text,
    version,
)
from gkd.report.runs import read_run
from gkd.work_dir import REPORT

CONFIGS = 'configs/mmdet3/digits/{}_fpn_digit-scenes.py'


@dataclass(frozen=True)
class Training:
    """One training of the quickstart.

    Attributes:
        config: Its config file.
        folder: Its work dir.
        seed: Its seed.
        method: What is taught, as the row of the results names it.
        options: Settings that replace the config's.
    """

    config: str
    folder: str
    seed: int
    method: str
    options: dict[str, str] = field(default_factory=dict)


def quickstart(family: str, seeds: Sequence[int], epochs: Optional[int] = None,
               work_dir: Optional[str] = None) -> None:
    """Prepare data, train teacher and student, distil the student, and print a table.

    The stages are those of MMDetection 2's quickstart. What is finished is not trained again.
    Every training is a row of ``results.csv`` in the work dir.

    Args:
        family: ``'retinanet'`` or ``'faster_rcnn'``.
        seeds: Both students are trained once a seed, from the same start and equally long.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything but the data goes (default: ``work_dirs/quickstart/mmdet3``).

    Raises:
        StageFailed: A training failed.
    """
    started = time.time()
    folder = osp.join(osp.abspath(work_dir or osp.join(WORKPLACE, 'work_dirs/quickstart/mmdet3')),
                      family)
    os.chdir(WORKPLACE or os.curdir)
    prepare_embedded('data/digit_scenes/train.json')
    prepare_efficientnet_lite0()
    distilled = CONFIGS.format(f'gkd_{family}_efficientnet-lite0_r18-w8')
    rows = osp.join(folder, 'results.csv')
    # What all start from, then the two trainings of every seed.
    teacher, *students = run_all([
        Training(CONFIGS.format(f'{family}_efficientnet-lite0'), osp.join(folder, 'teacher'), 0,
                 TEACHER),
        *(Training(CONFIGS.format(f'{family}_r18-w8'), osp.join(folder, f'student_seed{seed}'),
                   seed, STUDENT) for seed in seeds)], epochs, family, rows)
    runs = run_all([
        Training(distilled, osp.join(folder, f'{method}_seed{seed}'), seed, method,
                 {'model.teacher.checkpoint': teacher[0], 'model.student.checkpoint': student,
                  **taught})
        for seed, (student, _) in zip(seeds, students)
        for method, taught in ((PLAIN, {'model.knowledge': '[]'}), ('gkd', {}))],
        epochs, family, rows)
    results = [[teacher], students, runs[::2], runs[1::2]]
    table = format_gain({row: [metrics for _, metrics in trainings]
                         for row, trainings in zip(ROWS, results)})
    write_atomically(osp.join(folder, 'table.md'), table)
    checkpoint = osp.relpath(runs[-1][0])
    command = f'{distilled} {checkpoint}'
    print(closing_text(f'{family} on digit-scenes, MMDetection 3', seeds, started, table, dict(
        report=osp.join(osp.dirname(checkpoint), REPORT),
        evaluate=f'bash {tool("test.sh")} {command}',
        export=f'python {tool("export_student.py")} {command}')))


def run_all(trainings: Sequence[Training], epochs: Optional[int], family: str,
            rows: str) -> list[tuple[str, dict[str, float]]]:
    """Train them, several at once without a GPU.

    Args:
        trainings: All that can run at once.
        epochs: Replaces the configs' number of epochs.
        family: The detectors.
        rows: CSV to append a row to for every training.

    Returns:
        The last checkpoint of each, and its metrics.

    Raises:
        StageFailed: A training ended with an error.
    """
    jobs = at_once()
    environment = shares(jobs)[0]
    with ThreadPoolExecutor(jobs) as pool, children_end_too():
        running = [pool.submit(train, training, epochs, family, rows, environment, jobs > 1)
                   for training in trainings]
        return [training.result() for training in running]


def train(training: Training, epochs: Optional[int], family: str, rows: str,
          environment: dict[str, str], logged: bool) -> tuple[str, dict[str, float]]:
    """Train unless it is done.

    Args:
        training: What to train.
        epochs: Replaces the config's number of epochs.
        family: The detectors.
        rows: CSV to append a row to.
        environment: Variables of the environment to set.
        logged: Whether the output goes to a file instead of being shown.

    Returns:
        The last checkpoint and its metrics.

    Raises:
        StageFailed: The training ended with an error.
    """
    folder, method = training.folder, training.method
    epochs = epochs or load_config(training.config).train_cfg.max_epochs
    checkpoint = osp.join(folder, f'epoch_{epochs}.pth')
    name = osp.relpath(folder)
    finished = osp.isfile(checkpoint)
    if finished:
        say(f'finished before: {name}')
    else:
        used = dict(machine=machine(), version=version())  # now: a clone may move on meanwhile
        log = f'{name}.log' if logged else None
        os.makedirs(osp.dirname(folder), exist_ok=True)
        say(f'\n=== {name}' + (f'\nlog: {log}' if log else ''))
        command = ['mmdet3/train.py', training.config, '--work-dir', folder, '--seed',
                   str(training.seed), '--epochs', str(epochs)]
        if training.options:
            command += ['--cfg-options',
                        *(setting(*option) for option in training.options.items())]
        status, _ = run_tool(command, environment, log)
        if status:
            raise StageFailed(f'{name}: the training {how_it_ended(status)}, see '
                              f'{log or "above"}. The same command goes on from there.')
    metrics = read_run(folder).evaluations[epochs]
    if not finished:
        append_result(rows, Result(
            'digit-scenes', FAMILIES[family], '' if method in (STUDENT, PLAIN) else '0',
            '' if method == TEACHER else str(training.seed), '', method, '', '',
            **metrics_text(metrics), **used))
    return checkpoint, metrics
