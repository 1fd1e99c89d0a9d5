"""What the tests under MMDetection 3 share."""

import json
import socket

import cv2
import numpy as np
import pytest
from small_experiments import CLASSES, COLOURS, IMAGES


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
