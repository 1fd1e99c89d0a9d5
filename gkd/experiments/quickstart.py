"""The quickstart: from nothing to a distilled detector and a table."""

from __future__ import annotations

import argparse
import os
import os.path as osp
import time
from collections.abc import Sequence
from typing import Optional

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.checkpoints import WORKPLACE
from gkd.comparison.methods import OWN, choose_methods
from gkd.datasets import prepare_embedded
from gkd.experiments.comparison_plan import plan
from gkd.quickstart import FAMILIES
from gkd.quickstart.run import run_quickstart
from gkd.running.config import load_config

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
    run_quickstart(comparison, f'{family} on {data}', path, seeds, started)
