"""What the tests under MMDetection 3 share."""

import json
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_experiments import CLASSES, COLOURS, IMAGES

from gkd.comparison import mmdet3, stages
from gkd.detectors.config_files import read_config

METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')


@pytest.fixture
def free_port():
    """A port for processes to meet at."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.fixture(scope='session')
def annotations(tmp_path_factory):
    """A COCO file of images with two coloured rectangles each."""
    folder = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(IMAGES):
        width, height = ((128, 96), (96, 128))[number % 2]
        pixels = generator.integers(90, 160, (height, width, 3), np.uint8)
        for position in range(2):
            label = (number + position) % 3
            w, h = generator.integers(34, 50, 2).tolist()
            x, y = (int(generator.integers(0, side)) for side in (width - w, height - h))
            pixels[y:y + h, x:x + w] = COLOURS[label]
            boxes.append(dict(id=len(boxes) + 1, image_id=number + 1, category_id=label + 1,
                              iscrowd=0, bbox=[x, y, w, h], area=w * h))
        cv2.imwrite(str(folder / f'{number}.png'), pixels)
        images.append(dict(id=number + 1, file_name=f'{number}.png', width=width, height=height))
    path = folder / 'annotations.json'
    path.write_text(json.dumps(dict(
        images=images, annotations=boxes,
        categories=[dict(id=number + 1, name=name) for number, name in enumerate(CLASSES)])))
    return path


@pytest.fixture
def commands(monkeypatch):
    """Commands that would be run; nothing is trained, but every result is there.

    ``aps`` holds APs by stage, 0.25 for others; a stage whose AP is None fails. ``detections`` are
    COCO results by test, none for others. ``whole`` are the commands, ``commands`` in short what
    each runs.
    """
    def run(command, environment=None, log=None, lock=None):
        folder = Path(command[command.index('--work-dir') + 1])
        run.whole.append(command)
        run.commands.append(f'{Path(command[0]).stem} {folder.name}')
        ap = run.aps.get(folder.name, 0.25)
        if ap is None:
            return 1, 0.0
        metrics = {f'coco/{name}': ap for name in METRICS}
        data = folder / 'now' / 'vis_data'
        data.mkdir(parents=True)
        if 'test' in command[0]:
            (folder / 'now' / 'now.json').write_text(json.dumps(metrics))
            prefix = read_config(command[1]).test_evaluator.outfile_prefix
            Path(f'{prefix}.bbox.json').write_text(json.dumps(run.detections.get(folder.name, [])))
            return 0, 500.0
        config = read_config(command[1])
        loop = config.train_cfg
        unit, end = ('iter', loop.max_iters) if 'max_iters' in loop else ('epoch', loop.max_epochs)
        (data / 'scalars.json').write_text(
            json.dumps(dict(loss=1.0, epoch=end, iter=3, time=0.5, data_time=0.25, step=3))
            + '\n' + json.dumps(dict(metrics, step=end)) + '\n')
        (data / 'config.py').write_text(config.pretty_text)
        (folder / f'{unit}_{end}.pth').touch()
        return 0, 500.0

    run.whole, run.commands, run.aps, run.detections = [], [], {}, {}
    for module in (stages, mmdet3):
        monkeypatch.setattr(module, 'run_tool', run)
    return run
