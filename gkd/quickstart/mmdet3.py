"""The quickstart with MMDetection 3; tools/mmdet3/train.py runs it without a config."""

from __future__ import annotations

import os
import os.path as osp
import time
from collections.abc import Sequence
from typing import Optional

from gkd.backbones.efficientnet_lite import prepare_efficientnet_lite0
from gkd.checkpoints import WORKPLACE
from gkd.comparison.methods import OWN, choose_methods
from gkd.comparison.mmdet3 import plan
from gkd.datasets import prepare_embedded
from gkd.engine.commands import load_config
from gkd.quickstart.run import run_quickstart

CONFIG = 'configs/mmdet3/digits/gkd_{}_efficientnet-lite0_r18-w8_fpn_digit-scenes.py'


def quickstart(family: str, seeds: Sequence[int], epochs: Optional[int] = None,
               work_dir: Optional[str] = None) -> None:
    """Prepare data, train teacher and student, distil the student, and print a table.

    The stages, the pictures and the report are those of MMDetection 2's quickstart. What is
    finished is not trained again. Every training is a row of ``results.csv`` in the work dir.

    Args:
        family: ``'retinanet'`` or ``'faster_rcnn'``.
        seeds: Both students are trained once a seed, from the same start and equally long.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything but the data goes (default: ``work_dirs/quickstart/mmdet3``).

    Raises:
        StageFailed: A training failed.
    """
    started = time.time()
    work_dir = osp.join(osp.abspath(work_dir or osp.join(
        WORKPLACE, 'work_dirs/quickstart/mmdet3')), family)
    os.chdir(WORKPLACE or os.curdir)
    path = CONFIG.format(family)
    config = load_config(path)
    prepare_embedded('data/digit_scenes/train.json')
    prepare_efficientnet_lite0()
    comparison = plan(config, family, choose_methods(config, [OWN]), seeds, epochs, work_dir,
                      fresh=True, detect=False)
    run_quickstart(comparison, f'{family} on digit-scenes, MMDetection 3', path, seeds, started)
