"""A tiny COCO data set of coloured rectangles, and configs that train small detectors on it."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmcv import Config
from mmdet.models import build_detector

from helpers import small_detectors as small

CLASSES = ('red', 'green', 'blue')
COLOURS = ((30, 30, 220), (30, 220, 30), (220, 30, 30))
# Width and height; the last one is resized to 77x128 and padded to 96x128 by the pipelines.
SIZES = ((128, 96), (96, 128), (128, 96), (60, 100))


def write_data(folder, sizes=SIZES, classes=CLASSES, boxes_per_image=2, empty_images=0, seed=0):
    """Write images and COCO annotations; returns the path of the JSON file.

    Image i holds ``boxes_per_image`` rectangles of classes i, i + 1, ..., the first of them at
    its right border; the last ``empty_images`` hold none.
    """
    folder = Path(folder)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (width, height) in enumerate(sizes):
        pixels = generator.integers(90, 160, (height, width, 3), np.uint8)
        name = f'image_{number}.png'
        for position in range(boxes_per_image if number < len(sizes) - empty_images else 0):
            label = (number + position) % len(classes)
            w, h = generator.integers(34, 50, 2)
            x = int(generator.integers(0, width - w)) if position % 2 else width - int(w)
            y = int(generator.integers(0, height - h))
            pixels[y:y + h, x:x + w] = COLOURS[label]
            annotations.append(dict(
                id=len(annotations) + 1, image_id=number + 1, category_id=label + 1, iscrowd=0,
                bbox=[x, y, int(w), int(h)], area=int(w * h)))
        cv2.imwrite(str(folder / 'images' / name), pixels)
        images.append(dict(id=number + 1, file_name=name, width=width, height=height))
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(classes)]
    path = folder / 'annotations.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations,
                                    categories=categories)))
    return path


def pipelines():
    """Training and test pipeline: resized to 128 pixels and padded to a multiple of 32."""
    normalize = dict(type='Normalize', mean=[127.0] * 3, std=[60.0] * 3, to_rgb=True)
    train = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', img_scale=(128, 128), keep_ratio=True),
        dict(type='RandomFlip', flip_ratio=0.5),
        normalize,
        dict(type='Pad', size_divisor=32),
        dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
    ]
    test = [
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=(128, 128), flip=False, transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            normalize,
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ]),
    ]
    return train, test


def dataset(annotations, pipeline, classes=CLASSES, **settings):
    """Config of the data set."""
    return dict(type='CocoDataset', classes=list(classes), ann_file=str(annotations),
                img_prefix=str(Path(annotations).parent / 'images'), pipeline=pipeline, **settings)


def experiment(model, annotations, classes=CLASSES, epochs=2, batch_size=2):
    """A whole config: model, data, schedule and runtime."""
    train, test = pipelines()
    return dict(
        model=model,
        data=dict(samples_per_gpu=batch_size, workers_per_gpu=0,
                  train=dataset(annotations, train, classes),
                  val=dataset(annotations, test, classes),
                  test=dataset(annotations, test, classes)),
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
        optimizer_config=dict(grad_clip=None),
        lr_config=dict(policy='step', step=[8]),
        runner=dict(type='EpochBasedRunner', max_epochs=epochs),
        evaluation=dict(interval=1, metric='bbox'),
        checkpoint_config=dict(interval=1),
        log_config=dict(interval=50, hooks=[dict(type='TextLoggerHook')]),
        log_level='INFO', seed=0, workflow=[('train', 1)])


def write_config(path, config):
    """Write a config file; returns its path as text."""
    Path(path).write_text(''.join(f'{name} = {value!r}\n' for name, value in config.items()))
    return str(path)


def write_weights(path, model, seed=0):
    """Write a checkpoint of a detector with random weights; returns its path as text."""
    torch.manual_seed(seed)
    detector = build_detector(Config(dict(model=model)).model)
    torch.save(dict(meta=dict(CLASSES=CLASSES), state_dict=detector.state_dict()), path)
    return str(path)


def write_pair(folder, family, teacher_channels=24, **settings):
    """Write data, a teacher's config and checkpoint, a student's and a distillation config.

    Args:
        folder: Where to.
        family: Key of ``small.FAMILIES``.
        teacher_channels: FPN channels of the teacher; the student has 16.
        **settings: Of :func:`experiment`.

    Returns:
        Paths of the student's and the distillation config, as text.
    """
    folder = Path(folder)
    annotations = folder / 'annotations.json'
    if not annotations.exists():
        write_data(folder)
    detector = small.FAMILIES[family]
    teacher = write_config(folder / 'teacher.py',
                           experiment(detector(teacher_channels), annotations, **settings))
    student = write_config(folder / 'student.py', experiment(detector(), annotations, **settings))
    model = dict(
        type='Distiller',
        teacher=dict(config=teacher,
                     checkpoint=write_weights(folder / 'teacher.pth', detector(teacher_channels))),
        student=dict(config=student),
        prototypes=dict(type='PrototypeGenerationModule', num_prototypes=3, min_size=30),
        knowledge=[dict(type='RobustDistillingModule')])
    distiller = write_config(folder / 'distiller.py', experiment(model, annotations, **settings))
    return student, distiller
