"""Pairs of detectors that need not exist, and steps of random numbers."""

import torch

from gkd.detectors import DetectorInfo, DetectorPair
from gkd.detectors.step import DensePredictions, DetectorOutputs, Step

NUM_CLASSES = 3
IMAGE_SIZE = 64
STRIDES = (8, 16, 32)
ANCHOR_SHAPES = ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))  # width, height in units of 2 strides
BOXES = [torch.tensor([[3.0, 5.0, 30.0, 28.0], [20.0, 10.0, 60.0, 61.0]]),
         torch.tensor([[33.0, 9.0, 44.0, 50.0]])]
LABELS = [torch.tensor([0, 2]), torch.tensor([1])]
EMPTY = dict(boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0, dtype=torch.long)] * 2)
POSITIVES_AN_IMAGE = 5


def cell_anchors(stride):
    """Anchors of one cell, around its corner, in pixels."""
    return tuple((-width * stride, -height * stride, width * stride, height * stride)
                 for width, height in ANCHOR_SHAPES)


def info(family='one-stage', channels=8, **traits):
    """Traits of a detector with three levels."""
    one_stage = family == 'one-stage'
    return DetectorInfo(**{**dict(
        name='RetinaNet' if one_stage else 'FasterRCNN', family=family,
        channels=(channels,) * len(STRIDES), strides=STRIDES, num_classes=NUM_CLASSES,
        anchors=tuple(map(cell_anchors, STRIDES)), sigmoid=one_stage, samples_positives=True,
        classifies_boxes=True, box_coding=((0.0,) * 4, (1.0,) * 4)), **traits})


def pair(family='one-stage', teacher_channels=8, student_channels=8):
    """A teacher and a student of one family."""
    return DetectorPair(info(family, teacher_channels), info(family, student_channels), STRIDES)


def pair_of(teacher=None, student=None):
    """A pair of which one detector, or each, is another than usual."""
    return DetectorPair(teacher or info(), student or info(), STRIDES)


def anchors():
    """All anchors ``(N, 4)``, over levels, rows, columns and the anchors of a cell."""
    boxes = []
    for stride in STRIDES:
        for y in range(0, IMAGE_SIZE, stride):
            for x in range(0, IMAGE_SIZE, stride):
                boxes += [(x + x1, y + y1, x + x2, y + y2)
                          for x1, y1, x2, y2 in cell_anchors(stride)]
    return torch.tensor(boxes)


def synthetic_step(family='one-stage', teacher_channels=8, student_channels=8, seed=0,
                   boxes=BOXES, labels=LABELS, dtype=torch.float32, bank=None, progress=0.0):
    """A step of random numbers, every field filled.

    The student's floating-point tensors are leaves that ask for a gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    images = len(boxes)
    one_stage = family == 'one-stage'
    counts = [POSITIVES_AN_IMAGE if len(image_boxes) else 0 for image_boxes in boxes]
    chosen = [torch.arange(count) % max(len(image_boxes), 1)
              for count, image_boxes in zip(counts, boxes)]
    first = torch.tensor([0, *map(len, boxes)]).cumsum(0)
    objects = torch.cat([start + own for start, own in zip(first, chosen)])
    positives = [image_boxes[own] + torch.rand(len(own), 4, generator=generator)
                 for image_boxes, own in zip(boxes, chosen)]
    negatives = 6 * images
    grid = anchors().to(dtype)
    places = tuple(len(ANCHOR_SHAPES) * (IMAGE_SIZE // stride) ** 2 for stride in STRIDES)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def outputs(channels):
        deltas = random(images, len(grid), 4) / 10
        size = (grid[:, 2:] - grid[:, :2]).repeat(1, 2)
        return DetectorOutputs(
            maps=tuple(random(images, channels, IMAGE_SIZE // stride, IMAGE_SIZE // stride)
                       for stride in STRIDES),
            logits=random(sum(counts), NUM_CLASSES + (not one_stage)),
            roi_features=None if one_stage else random(sum(counts), channels, 7, 7),
            proposal_logits=(None if one_stage
                             else random(sum(counts) + negatives, NUM_CLASSES + 1)),
            dense=DensePredictions(
                logits=random(images, len(grid), NUM_CLASSES if one_stage else 1), counts=places,
                anchors=grid, deltas=deltas, boxes=grid + deltas * size))

    def score_maps(part):
        return tuple(
            level.detach().unflatten(1, (size, size, -1)).permute(0, 3, 4, 1, 2).flatten(1, 2)
            for level, size in zip(part.dense.logits.split(places, dim=1),
                                   (IMAGE_SIZE // stride for stride in STRIDES)))

    step = Step(
        images=torch.zeros(images, 3, IMAGE_SIZE, IMAGE_SIZE),
        image_sizes=[(IMAGE_SIZE, IMAGE_SIZE)] * images, strides=STRIDES, gt_boxes=list(boxes),
        gt_labels=list(labels), student=outputs(student_channels),
        teacher=outputs(teacher_channels), bank=bank, progress=progress, boxes=positives,
        labels=torch.cat(labels)[objects], objects=objects,
        roi_levels=None if one_stage else torch.arange(sum(counts)) % len(STRIDES),
        proposal_positives=(None if one_stage else
                            torch.arange(sum(counts) + negatives) < sum(counts)))
    for leaf in leaves(step.student):
        leaf.requires_grad_()
    if one_stage:
        for part in (step.student, step.teacher):
            part.score_maps = score_maps(part)
    return step


def step_4_6(boxes=BOXES, **settings):
    """A step in double precision; the student's maps have 4 channels, the teacher's 6."""
    return synthetic_step(student_channels=4, teacher_channels=6, dtype=torch.float64,
                          boxes=[image_boxes.double() for image_boxes in boxes], **settings)


def leaves(outputs):
    """Tensors of a detector's part through which a loss can teach; boxes are not among them."""
    dense = outputs.dense
    found = [*outputs.maps, outputs.logits, outputs.roi_features, outputs.proposal_logits,
             dense.logits, dense.deltas]
    return [tensor for tensor in found if tensor is not None]
