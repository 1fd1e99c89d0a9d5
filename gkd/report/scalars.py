"""What MMEngine's runner leaves in a work dir, read as the logs of MMDetection 2 are."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator
from glob import escape, glob
from math import ceil

from gkd.frameworks import Config
from gkd.report.logs import order, read_log
from gkd.work_dir import without_prefixes


def read_scalars(work_dir: str) -> tuple[list[dict], str | None]:
    """Lines of all starts of a run, and the text of its last config.

    Args:
        work_dir: Holds a folder ``TIME/vis_data`` for every start.

    Returns:
        Lines with ``mode``, ``epoch`` and ``iter``, which counts from 1 within the epoch; lines of
        a later start replace those they repeat. And the config, None if nothing was trained.
    """
    lines, text = [], None
    for path in sorted(glob(osp.join(escape(work_dir), '*', 'vis_data', 'scalars.json'))):
        new = list(lines_of(path))
        if not new:
            continue
        lines = [line for line in lines if order(line) < order(new[0])] + new
        config = osp.join(osp.dirname(path), 'config.py')
        if osp.isfile(config):
            with open(config, encoding='utf-8') as file:
                text = file.read()
    # The runner counts on from epoch to epoch.
    trained = [line for line in lines if line['mode'] == 'train']
    steps = max((ceil(line['iter'] / line['epoch']) for line in trained), default=1)
    for line in trained:
        line['iter'] -= (line['epoch'] - 1) * steps
    return lines, text


def lines_of(path: str) -> Iterator[dict]:
    """Lines of a file with the names of MMDetection 2, up to a line that was cut short.

    Of a training that counts iterations, metrics have the last iteration as their ``epoch``.
    """
    iteration = None
    for line in read_log(path):
        if 'loss' in line:
            iteration = None if 'epoch' in line else line['iter']
            yield dict(line, mode='train', epoch=line.get('epoch', 1))  # a loop may count none
        elif any('/' in name for name in line):
            yield dict(without_prefixes(line), mode='val', epoch=iteration or line['step'], iter=0)


def with_names_of_mmdetection_2(config: Config) -> Config:
    """A config of MMDetection 3 with what reports need, in the places of MMDetection 2."""
    dataset = (config.get('val_dataloader') or {}).get('dataset') or {}
    config.data = dict(val=dict(
        dataset, img_prefix=(dataset.get('data_prefix') or {}).get('img') or '',
        classes=(dataset.get('metainfo') or {}).get('classes')))
    config.runner = {name: value for name, value in config.train_cfg.items()
                     if name in ('max_epochs', 'max_iters')}
    return config
