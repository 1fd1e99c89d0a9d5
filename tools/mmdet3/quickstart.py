"""The quickstart with MMDetection 3; tools/mmdet3/train.py runs it without a config."""

import os
import os.path as osp
import subprocess
import sys

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.checkpoints import REPOSITORY, WORKPLACE
from gkd.datasets import prepare_embedded
from gkd.engine.commands import load_config
from gkd.errors import RunError
from gkd.report.comparison import format_gain
from gkd.report.runs import read_run

CONFIGS = 'configs/mmdet3/digits/{}_fpn_digit-scenes.py'


def quickstart(family, seeds, epochs=None, work_dir=None):
    """Prepare data, train teacher and student, distil the student, and print a table.

    The stages are those of MMDetection 2's quickstart, one after the other; what is finished is
    not trained again.
    """
    work_dir = osp.abspath(work_dir or osp.join(WORKPLACE, 'work_dirs/quickstart/mmdet3'))
    folder = osp.join(work_dir, family)
    os.chdir(WORKPLACE or os.curdir)
    prepare_embedded('data/digit_scenes/train.json')
    prepare_efficientnet_lite0()
    distilled = CONFIGS.format(f'gkd_{family}_efficientnet-lite0_r18-w8')
    rows = {name: [] for name in ('teacher', 'student', 'student, continued',
                                  'student, distilled')}
    teacher, metrics = train(CONFIGS.format(f'{family}_efficientnet-lite0'),
                             osp.join(folder, 'teacher'), 0, epochs)
    rows['teacher'].append(metrics)
    for seed in seeds:
        student, metrics = train(CONFIGS.format(f'{family}_r18-w8'),
                                 osp.join(folder, f'student_seed{seed}'), seed, epochs)
        rows['student'].append(metrics)
        starts = {'model.teacher.checkpoint': teacher, 'model.student.checkpoint': student}
        for name, title, taught in (('plain', 'student, continued', {'model.knowledge': '[]'}),
                                    ('gkd', 'student, distilled', {})):
            _, metrics = train(distilled, osp.join(folder, f'{name}_seed{seed}'), seed, epochs,
                               {**starts, **taught})
            rows[title].append(metrics)
    print(f'\n{family} on digit scenes, MMDetection 3, validation, seeds '
          f'{" ".join(map(str, seeds))}:\n\n{format_gain(rows)}\n'
          f'report:  {osp.relpath(osp.join(folder, f"gkd_seed{seeds[-1]}", "report.html"))}')


def train(config, folder, seed, epochs, options=None):
    """Train unless it is done; returns the last checkpoint and its metrics."""
    epochs = epochs or load_config(config).train_cfg.max_epochs
    checkpoint = osp.join(folder, f'epoch_{epochs}.pth')
    if not osp.isfile(checkpoint):
        command = [sys.executable, osp.join(REPOSITORY, 'tools', 'mmdet3', 'train.py'), config,
                   '--work-dir', folder, '--seed', str(seed), '--epochs', str(epochs)]
        if options:
            command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
        print(f'\n=== {osp.relpath(folder)}', flush=True)
        if subprocess.run(command).returncode:
            raise RunError(f'{osp.relpath(folder)}: the training failed, see above. The same '
                           f'command goes on from there.')
    return checkpoint, read_run(folder).evaluations[epochs]
