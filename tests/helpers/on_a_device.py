"""Generations and training steps on the pretended device, under either MMDetection."""

import importlib
import logging
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from gkd.detectors.images import ChannelMap, ImageFormat
from gkd.detectors.teacher import Teacher
from gkd.frameworks import (
    Config,
    build_dataset,
    build_detector,
    logger,
    student_losses,
    synthetic_batch,
)
from gkd.installed import mmdet_major
from gkd.prototypes.features import group_by_size
from gkd.registry import KNOWLEDGE
from helpers import small_detectors as small
from helpers.pretended_device import pretended_device

METHODS = [dict(type=name) for name, kind in KNOWLEDGE.module_dict.items()
           if kind.__module__.startswith('gkd.')]
IN_CLASS_SPACE = [dict(type='RobustDistillingModule', global_knowledge=dict(space='classes'))]
TAUGHT = {'methods': ('bfloat16', METHODS), 'class space': ('full', IN_CLASS_SPACE)}
BOXES = torch.tensor([[8.0, 8, 60, 60], [70, 64, 120, 122]])
BATCH_SIZE = 2  # of a generation
PREPROCESSOR = dict(type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
                    pad_size_divisor=32)


def cascade(channels=16):
    """A Faster R-CNN with two stages of boxes."""
    detector = small.faster_rcnn(channels)
    roi_head, settings = detector['roi_head'], detector['train_cfg']
    detector['type'] = 'CascadeRCNN'
    roi_head.update(type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5],
                    bbox_head=[dict(roi_head['bbox_head'], reg_class_agnostic=True)] * 2)
    settings['rcnn'] = [settings['rcnn']] * 2
    return detector


DETECTORS = dict(small.FAMILIES, cascade=cascade)


def in_new_process(function, *args):
    """What a function returns; torch keeps to itself there what it learns of devices."""
    # Importing gkd first lets mmdet be imported, as `conftest.py` does for the tests.
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'),
                             importlib.import_module, ('gkd',)) as pool:
        return pool.submit(function, *args).result()


def distiller(name, taught):
    """A distiller of one of ``DETECTORS``, whose teacher takes other images than its student."""
    precision, knowledge = TAUGHT[taught]
    teacher, student = DETECTORS[name](24), DETECTORS[name]()
    if mmdet_major() == 3:
        teacher['data_preprocessor'] = dict(PREPROCESSOR, mean=[120.0] * 3, bgr_to_rgb=False)
        student['data_preprocessor'] = PREPROCESSOR
    logger().setLevel(logging.WARNING)
    model = build_detector(small.distiller(teacher, student, knowledge, num_prototypes=3,
                                           min_size=30, batch_size=BATCH_SIZE))
    model.init_weights()
    if mmdet_major() == 2:
        model.teacher_images = model.frozen.exact.test_images = ChannelMap(
            ImageFormat(rgb=True), ImageFormat(mean=(7.0, 7.0, 7.0), padding=(-7.0,) * 3))
    model.frozen = Teacher(model.frozen.exact, precision,
                           reads_classes=knowledge == IN_CLASS_SPACE)
    return model.train()


def waits_of(name, taught, dataset, folder):
    """Generate prototypes and take a training step; where the host waited for the device.

    Args:
        name: Of ``DETECTORS``.
        taught: Of ``TAUGHT``.
        dataset: Config of a data set with a test pipeline.
        folder: For what a generation keeps.

    Returns:
        The waits of a generation by the file that waits; how often each file may; the waits of a
        step of the student alone, by operation and line; and those of the same step when taught.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = distiller(name, taught)
    images = torch.randn(2, 3, 128, 128)
    with pretended_device() as (device, waits):
        model.to(device)
        waits.clear()
        generation = model.generate_bank([build_dataset(Config(dict(data=dataset)).data)],
                                         str(folder))
        generated = Counter()
        for place, count in waits.items():
            generated[Path(place.split()[-1].partition(':')[0]).name] += count
        alone = step_and_waits(model, lambda batch: student_losses(model.student, batch),
                               images.to(device), waits)
        taught = step_and_waits(model, model.losses, images.to(device), waits)
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        assert {parameter.device for parameter in model.parameters()} == {device}
        return generated, allowed_waits(model, generation), alone, taught


def allowed_waits(model, generation):
    """How often a generation may wait for the device, by file.

    Features go to the CPU, as all of a data set would not fit on a GPU: a copy for each batch and
    detector. A search looks whether the features of both detectors are finite, counts its
    candidates, and returns its choice, however many prototypes that are. Once, the weights of both
    detectors are hashed, which name what the features and the bank were computed from; under
    MMDetection 3, the mean and deviation of the teacher's images are hashed too.
    """
    batches = group_by_size(model.prototypes.candidates, BATCH_SIZE)
    searches = generation.bank.num_levels * small.NUM_CLASSES
    allowed = {'features.py': 2 * len(batches), 'pursuit.py': 3 * searches,
               'generation.py': searches + len(model.teacher.state_dict()),
               'distiller.py': len(model.student.state_dict())}
    return allowed if mmdet_major() == 2 else dict(allowed, **{'mmdet3.py': 2})


def step_and_waits(model, losses, images, waits):
    """Take a step but for the optimiser's; where the host waited, and how often."""
    batch = synthetic_batch(images, BOXES.to(images.device), torch.arange(2).to(images.device))
    waits.clear()
    torch.manual_seed(0)
    sum(sum(value) if isinstance(value, list) else value
        for name, value in losses(batch).items() if 'loss' in name).backward()
    return dict(waits)


def mixed():
    """What an operation on tensors of two devices raises, and where one waits."""
    with pretended_device() as (device, waits):
        there = torch.ones(2).to(device)
        assert there.sum().item() == 2 and (there + torch.tensor(1.0)).device == device
        try:
            there + torch.ones(2)
        except RuntimeError as error:
            return str(error), list(waits)
