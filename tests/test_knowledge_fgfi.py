"""FGFI against loops over images, objects, anchors, cells and channels."""

import pytest
import torch
from helpers import synthetic_steps as steps
from helpers.by_hand import iou
from torch import nn

from gkd.detectors import DetectorPair, Needs
from gkd.errors import ConfigError
from gkd.knowledge.methods.fgfi import FGFI, masked_squared_distance, near_objects


def near_by_loop(anchors, boxes, threshold):
    near = []
    for image_boxes in boxes:
        chosen = [False] * len(anchors)
        for box in image_boxes.tolist():
            overlaps = [iou(box, anchor) for anchor in anchors.tolist()]
            for place, own in enumerate(overlaps):
                chosen[place] |= own > threshold * max(overlaps)
        near.append(chosen)
    return torch.tensor(near)


def loss_by_loop(adapted, teacher, anchors, boxes, threshold, weight):
    near, first, total, cells = near_by_loop(anchors, boxes, threshold), 0, 0.0, 0
    shapes = len(steps.ANCHOR_SHAPES)
    for own, target in zip(adapted, teacher):
        images, channels, height, width = own.shape
        for y in range(height):
            for x in range(width):
                for image in range(images):
                    if any(near[image, first + shape] for shape in range(shapes)):
                        cells += 1
                        for channel in range(channels):
                            total = total + (own[image, channel, y, x]
                                             - target[image, channel, y, x]) ** 2
                first += shapes
    return weight * total / (2 * cells)


def build(*args, **settings):
    """FGFI in float64, with an adaptation of ordinary size."""
    torch.manual_seed(0)
    fgfi = FGFI(steps.pair(*args), **settings).double()
    for layer in fgfi.adaptation:
        nn.init.normal_(layer.weight, std=0.1)
    return fgfi


def loss_of(fgfi, step):
    losses = fgfi(step)
    assert losses.keys() == {'loss_fgfi'}
    return losses['loss_fgfi']


@pytest.mark.parametrize('threshold', [0.0, 0.5, 0.9])
def test_finds_what_is_near_an_object(threshold):
    anchors = steps.anchors()
    boxes = [*steps.BOXES, torch.zeros(0, 4), torch.tensor([[700.0, 700.0, 710.0, 720.0]]),
             torch.tensor([[11.0, 11.0, 11.0, 11.0]])]
    near = near_objects(anchors, boxes, threshold)
    assert torch.equal(near, near_by_loop(anchors, boxes, threshold))
    counts = near.sum(dim=1).tolist()
    # Nothing is near an object without area, nor near one that no anchor overlaps.
    assert 0 < counts[1] < counts[0] < len(anchors) and counts[2:] == [0, 0, 0]


def test_the_best_anchor_is_sought_on_all_levels():
    """An object of the size of a coarse level's anchors is not imitated on a fine one."""
    stride = steps.STRIDES[-1]
    box = torch.tensor(steps.cell_anchors(stride)[0]) + stride
    near = near_objects(steps.anchors(), [box[None]])
    fine, coarse = near[0].split([64 * 3, near.shape[1] - 64 * 3])
    assert not fine.any() and coarse.any()


@pytest.mark.parametrize('family', ['one-stage', 'two-stage'])
def test_is_the_formula(family):
    step = steps.synthetic_step(family, 6, 4, dtype=torch.float64)
    student, teacher = step.student, step.teacher
    fgfi = build(family, 6, 4, loss_weight=0.3, threshold=0.6)
    adapted = [adapt(own) for adapt, own in zip(fgfi.adaptation, student.maps)]
    expected = loss_by_loop(adapted, teacher.maps, steps.anchors(), steps.BOXES, 0.6, 0.3)
    torch.testing.assert_close(loss_of(fgfi, step), expected)


def test_defaults_are_the_authors():
    fgfi = FGFI(steps.pair())
    assert (fgfi.loss_weight, fgfi.threshold, fgfi.needs) == (0.01, 0.5, Needs(anchors=True))
    for layer in fgfi.adaptation:
        assert layer.kernel_size == (3, 3) and 0.8e-4 < layer.weight.std() < 1.2e-4


def test_gradient():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64)
    cells = torch.rand(2, 2, 3) < 0.5
    assert torch.autograd.gradcheck(lambda x: masked_squared_distance(x, teacher, cells),
                                    student.requires_grad_())


def test_is_0_for_a_map_like_the_teachers():
    step = steps.synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    fgfi = build()
    for layer in fgfi.adaptation:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    student.maps = tuple(target.clone().requires_grad_() for target in teacher.maps)
    assert loss_of(fgfi, step).item() == 0


def test_images_without_objects():
    """An empty image adds nothing; a batch of them is 0, and still reaches every parameter."""
    nothing, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    step = steps.synthetic_step(boxes=[steps.BOXES[0], nothing],
                                labels=[steps.LABELS[0], no_labels], dtype=torch.float64)
    student = step.student
    fgfi = build()
    loss_of(fgfi, step).backward()
    assert student.maps[0].grad[0].abs().sum() > 0 == student.maps[0].grad[1].abs().sum()

    step = steps.synthetic_step(boxes=[nothing] * 2, labels=[no_labels] * 2,
                                dtype=torch.float64)
    student = step.student
    fgfi = build()
    loss = loss_of(fgfi, step)
    loss.backward()
    assert loss.item() == 0
    for tensor in (*student.maps, *fgfi.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_refuses_a_student_without_anchors():
    pair = DetectorPair(steps.info(), steps.info(name='FCOS', anchors=()), steps.STRIDES)
    with pytest.raises(ConfigError, match='FCOS has no anchors.*anchor-based head'):
        FGFI(pair)
    FGFI(DetectorPair(steps.info(anchors=()), steps.info(), steps.STRIDES))


@pytest.mark.parametrize('threshold', [-0.1, 1.0])
def test_refuses_a_threshold_outside_its_range(threshold):
    with pytest.raises(ConfigError, match='FGFI.threshold'):
        FGFI(steps.pair(), threshold=threshold)


def test_half_precision_maps_are_compared_in_float32():
    step = steps.synthetic_step()
    student, teacher = step.student, step.teacher
    fgfi = build().float()
    exact = loss_of(fgfi, step)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = loss_of(fgfi, step)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)

    half = [own.detach().bfloat16() for own in (student.maps[0], teacher.maps[0])]
    cells = torch.ones(2, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(masked_squared_distance(*half, cells),
                               masked_squared_distance(*(own.float() for own in half), cells))
