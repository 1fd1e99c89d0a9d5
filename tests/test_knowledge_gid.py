"""GID against loops over places, instances, anchors and the samples of RoIAlign."""

import dataclasses
import math

import pytest
import torch
from helpers.by_hand import iou, random
from helpers.synthetic_steps import (
    ANCHOR_SHAPES,
    IMAGE_SIZE,
    STRIDES,
    info,
    pair,
    pair_of,
    synthetic_step,
)

from gkd.errors import ConfigError
from gkd.knowledge.methods import gid
from gkd.knowledge.methods.gid import (
    GID,
    box_response_loss,
    class_response_loss,
    feature_loss,
    pool_rois,
    relation_loss,
    responsible_anchors,
    select_instances,
)
from gkd.registry import KNOWLEDGE

WEIGHTS = dict(loss_gid_feature=5e-4, loss_gid_relation=40, loss_gid_cls=0.1, loss_gid_bbox=1)
BOTH = pytest.mark.parametrize('family', ['one-stage', 'two-stage'])


def slow_selection(student, teacher, image, count=10, threshold=0.3, size=(IMAGE_SIZE,) * 2):
    """The instances of an image, one after the other; scores ``(B, N)`` and boxes in pairs."""
    places = []
    for own, other, own_box, other_box in zip(student[0][image].tolist(),
                                              teacher[0][image].tolist(),
                                              student[1][image].tolist(),
                                              teacher[1][image].tolist()):
        box = other_box if other > own else own_box
        box = [min(max(value, 0.), size[1 - axis % 2]) for axis, value in enumerate(box)]
        if box[2] - box[0] > 10 and box[3] - box[1] > 10:
            places.append((abs(other - own), box))
    chosen = []
    for _, box in sorted(places, key=lambda place: -place[0]):
        if len(chosen) < count and all(iou(box, other) <= threshold for other in chosen):
            chosen.append(box)
    return chosen


def slow_pool(feature, stride, box):
    """RoIAlign of one box on one image's map ``(C, H, W)``: 10 x 10 cells of 2 x 2 samples."""
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    pooled = torch.zeros(len(feature), 10, 10, dtype=feature.dtype)
    for row in range(10):
        for column in range(10):
            for sample in range(4):
                y = y1 + (row + 0.25 + 0.5 * (sample // 2)) * (y2 - y1) / 10
                x = x1 + (column + 0.25 + 0.5 * (sample % 2)) * (x2 - x1) / 10
                pooled[:, row, column] += interpolate(feature, y, x) / 4
    return pooled


def interpolate(feature, y, x):
    y, x = (min(max(value, 0.), side - 1.) for value, side in zip((y, x), feature.shape[1:]))
    top, left = int(y), int(x)
    bottom, right = (min(first + 1, side - 1)
                     for first, side in zip((top, left), feature.shape[1:]))
    down, along = y - top, x - left
    return ((feature[:, top, left] * (1 - along) + feature[:, top, right] * along) * (1 - down)
            + (feature[:, bottom, left] * (1 - along) + feature[:, bottom, right] * along) * down)


def slow_feature_loss(student, teacher):
    cells = [((own[:, y, x] - target[:, y, x]) ** 2).sum().item()
             for own, target in zip(student, teacher) for y in range(10) for x in range(10)]
    return sum(cells) / len(cells)


def slow_relation_loss(student, teacher):
    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]
    own, target = ([((features[i] - features[j]) ** 2).sum().item() ** 0.5 for i, j in pairs]
                   for features in (student, teacher))
    own, target = ([value * len(values) / sum(values) for value in values]
                   for values in (own, target))
    differences = [abs(a - b) for a, b in zip(own, target)]
    return sum(d - 0.5 if d > 1 else d * d / 2 for d in differences) / len(pairs)


def slow_responsible(anchors, instances, threshold):
    found = set()
    for box in instances:
        values = [iou(box, anchor) for anchor in anchors]
        found |= {number for number, value in enumerate(values)
                  if value >= threshold or value == max(values)}
    return found


def slow_losses(student, teacher, threshold):
    """All four losses of two detectors whose boxes all belong to the finest level."""
    own, target = student.dense, teacher.dense
    scores = [dense.logits.detach().sigmoid().amax(2) for dense in (own, target)]
    student_features, teacher_features, cls, bbox = [], [], [], []
    for image in range(len(own.logits)):
        instances = slow_selection((scores[0], own.boxes), (scores[1], target.boxes), image)
        for record, features in ((student, student_features), (teacher, teacher_features)):
            features += [slow_pool(record.maps[0][image].detach(), STRIDES[0], box)
                         for box in instances]
        for place in slow_responsible(own.anchors.tolist(), instances, threshold):
            entropy = 0
            for s, t in zip(own.logits[image, place].tolist(),
                            target.logits[image, place].sigmoid().tolist()):
                s = 1 / (1 + math.exp(-s))
                entropy -= t * math.log(s) + (1 - t) * math.log(1 - s)
            cls.append(entropy)
            bbox.append(sum(abs(s - t) for s, t in zip(own.deltas[image, place].tolist(),
                                                       target.deltas[image, place].tolist())))
    losses = (slow_feature_loss(student_features, teacher_features),
              slow_relation_loss(student_features, teacher_features),
              sum(cls) / len(cls), sum(bbox) / len(bbox))
    return {name: weight * loss for (name, weight), loss in zip(WEIGHTS.items(), losses)}


def identity(module):
    """Let the student's features pass the module as they are."""
    with torch.no_grad():
        torch.nn.init.dirac_(module.adaptation.weight)
        module.adaptation.bias.zero_()
    return module.double()


@BOTH
def test_losses(family):
    step = synthetic_step(family, dtype=torch.float64)
    student, teacher = step.student, step.teacher
    module = KNOWLEDGE.build(dict(type='GID'), default_args=dict(pair=pair(family)))
    losses = identity(module)(step)
    expected = slow_losses(student, teacher, 0.5 if family == 'one-stage' else 0.7)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


@pytest.mark.parametrize('count, threshold', [(10, 0.3), (40, 0.1), (3, 0.8)])
def test_selection(count, threshold):
    boxes, sizes = random(2, 2, 60, 2).abs() * 40, random(2, 2, 60, 2, seed=1).abs() * 40
    scores = random(2, 2, 60, seed=2).sigmoid()
    boxes = torch.cat([boxes - 10, boxes - 10 + sizes], dim=-1)
    sizes_of_images = [(64, 90), (90, 80)]
    chosen, valid = select_instances(*scores, *boxes, sizes_of_images, count, threshold)
    for image in range(2):
        expected = slow_selection(*zip(scores, boxes), image, count, threshold,
                                  sizes_of_images[image])
        torch.testing.assert_close(chosen[image][valid[image]], torch.tensor(expected).double())
        assert count == 40 or len(expected) == count
    assert chosen.shape == (2, count, 4)


def test_selection_takes_the_box_of_the_surer_one():
    student, teacher = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.3]])
    boxes = torch.tensor([[[0., 0., 20., 20.], [40., 0., 60., 20.]]])
    chosen, _ = select_instances(student, teacher, boxes, boxes + 1, [(64, 64)], 2)
    assert torch.equal(chosen, torch.stack([boxes[0, 0], boxes[0, 1] + 1])[None])


def test_no_instance_lies_in_the_padding_of_a_smaller_image():
    """Two images of different size in one batch: 160 x 384 and 256 x 200, padded to 256 x 384."""
    step = synthetic_step(boxes=[torch.zeros(0, 4)] * 2,
                          labels=[torch.zeros(0, dtype=torch.long)] * 2)
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, len(step.student.dense.anchors), 2, generator=generator)
    corners = corners * torch.tensor([340., 210.])
    for part in (step.student, step.teacher):
        part.dense.boxes = torch.cat([corners, corners + 40], dim=2)
    step.image_sizes = [(160, 384), (256, 200)]
    chosen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gid, 'pool_rois', lambda maps, strides, boxes: chosen.append(boxes)
                      or pool_rois(maps, strides, boxes))
        GID(pair())(step)
    for boxes, (height, width) in zip(chosen[0], step.image_sizes):
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 10).all()


def test_instances_are_selected_where_all_scores_agree():
    boxes = torch.tensor([[[0., 0., 20., 20.], [40., 0., 60., 20.]]])
    _, valid = select_instances(*torch.full((2, 1, 2), 0.5), boxes, boxes, [(64, 64)], 3)
    assert valid.tolist() == [[True, True, False]]


def test_features_come_from_the_level_of_a_box():
    maps = [random(1, 2, 512 // stride, 512 // stride, seed=stride) for stride in STRIDES]
    boxes = [[3., 5., 220., 210.], [20., 10., 290., 270.], [0., 11., 500., 480.]]
    pooled = pool_rois(maps, STRIDES, torch.tensor([boxes]).double())
    for level, (feature, stride) in enumerate(zip(maps, STRIDES)):
        torch.testing.assert_close(pooled[level], slow_pool(feature[0], stride, boxes[level]))


def test_features_come_from_the_image_of_a_box():
    maps = [torch.tensor([1., 2.]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)]
    pooled = pool_rois(maps, (8,), torch.tensor([0., 0., 30., 30.]).expand(2, 3, 4))
    assert pooled.flatten(1).mean(dim=1).tolist() == [1, 1, 1, 2, 2, 2]


def test_responsible_anchors_ignore_what_is_no_instance():
    anchors = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 5.], [20., 0., 30., 10.],
                            [40., 0., 50., 10.]])
    boxes = torch.tensor([[[0., 0., 10., 9.], [18., 0., 22., 4.], [40., 0., 50., 10.]]])
    valid = torch.tensor([[True, True, False]])
    found = responsible_anchors(anchors, boxes, valid, 0.5)
    assert found.tolist() == [[True, True, True, False]]
    assert responsible_anchors(anchors, boxes, valid, 0.7).tolist() == [[True, False, True, False]]


def test_what_is_no_instance_counts_for_nothing():
    student, teacher = random(5, 2, 10, 10), random(5, 2, 10, 10, seed=1)
    valid = torch.tensor([True, False, True, False, True])
    for loss, slow in ((feature_loss, slow_feature_loss), (relation_loss, slow_relation_loss)):
        expected = slow(student[valid], teacher[valid])
        assert loss(student, teacher, valid).item() == pytest.approx(expected)


def test_equal_predictions_and_features_have_no_loss():
    features, valid = random(4, 2, 10, 10), torch.ones(4, dtype=torch.bool)
    assert feature_loss(features, features, valid) == 0
    assert relation_loss(features, features, valid) == 0
    assert relation_loss(features, 3 * features + 2, valid) < 1e-12
    deltas, anchors = random(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    assert box_response_loss(deltas, deltas, anchors) == 0
    logits = random(2, 6, 3).requires_grad_()
    class_response_loss(logits, logits, anchors).backward()
    assert logits.grad.abs().max() < 1e-12


def test_relations_do_not_feel_what_all_features_have_in_common():
    student, teacher = random(6, 3, 4, 4), random(6, 3, 4, 4, seed=1)
    valid = torch.ones(6, dtype=torch.bool)
    exact = relation_loss(student, teacher, valid).float()
    shifted = relation_loss((student + 1000).float(), (teacher - 1000).float(), valid)
    torch.testing.assert_close(shifted, exact, rtol=1e-3, atol=0)


def test_instances_may_look_the_same():
    """The root of a squared distance of 0, or just below by rounding, has no gradient."""
    student = random(1, 3, 10, 10).float().expand(4, -1, -1, -1).clone().requires_grad_()
    loss = relation_loss(student, random(4, 3, 10, 10, seed=1), torch.ones(4, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize('loss', [feature_loss, relation_loss])
def test_gradients_of_features(loss):
    student, teacher = random(4, 2, 2, 1).requires_grad_(), random(4, 2, 2, 1, seed=1)
    valid = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(lambda own: loss(own, teacher, valid), student)


@pytest.mark.parametrize('loss', [class_response_loss, box_response_loss])
def test_gradients_of_responses(loss):
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4, seed=1)
    anchors = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.autograd.gradcheck(lambda own: loss(own, teacher, anchors), student)


def test_images_without_instances():
    """No box is large enough to be one."""
    module = GID(pair())
    step = synthetic_step()
    student, teacher = step.student, step.teacher
    for record in (student, teacher):
        record.dense.boxes = torch.zeros_like(record.dense.boxes)
    losses = module(step)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    taught = [*module.parameters(), student.maps[0], student.dense.logits, student.dense.deltas]
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in taught)


@pytest.mark.parametrize('unfit, settings, reason', [
    (pair_of(info('two-stage')), {}, 'predict different things'),
    (pair_of(*[info(anchors=(), box_coding=())] * 2), {}, 'teacher RetinaNet does not'),
    (pair_of(None, info(sigmoid=False)), {}, 'student RetinaNet scores classes by softmax'),
    (pair_of(info(anchors=info().anchors[::-1])), {}, 'different anchors'),
    (pair_of(info(box_coding=((0.0,) * 4, (0.1,) * 4))), {}, 'boxes on different scales'),
    (pair_of(None, dataclasses.replace(info(), channels=(8, 8, 4))), {}, r'\(8, 8, 4\) channels'),
    (pair(), dict(num_instances=0), 'GID.num_instances = 0'),
    (pair(), dict(num_instances=1e1), 'GID.num_instances = 10.0: must be a whole number'),
    (pair(), dict(iou_threshold=30), 'GID.iou_threshold = 30: must be an IoU'),
    (pair(), dict(anchor_iou=-0.5), 'GID.anchor_iou = -0.5: must be an IoU'),
])
def test_refusals(unfit, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        GID(unfit, **settings)


def test_autocast_computes_the_losses_in_float32():
    step = synthetic_step(dtype=torch.bfloat16)
    student, teacher = step.student, step.teacher
    for record in (student, teacher):
        record.dense.boxes = record.dense.boxes.float()
    module = GID(pair())
    exact = module(step)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = module(step)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    # The convolution may run in half precision, the losses not.
    for name, precision in zip(WEIGHTS, (2e-2, 2e-2, 1e-6, 1e-6)):
        torch.testing.assert_close(losses[name], exact[name], rtol=precision, atol=0)


def test_anchors_of_the_synthetic_steps_are_of_the_finest_level():
    """What `slow_losses` relies on."""
    assert max(IMAGE_SIZE, len(ANCHOR_SHAPES)) < 28 * STRIDES[0]


def test_apart_are_boxes_that_do_not_overlap_at_all():
    """Though by a threshold of 0 the slightest overlap is too much."""
    boxes = torch.tensor([[[0., 0., 20., 20.], [19., 0., 40., 20.], [40., 0., 60., 20.]]])
    chosen, valid = select_instances(torch.zeros(1, 3), torch.tensor([[0.9, 0.8, 0.3]]), boxes,
                                     boxes, sizes=[(64, 64)], iou_threshold=0)
    assert torch.equal(chosen[valid], boxes[0, [0, 2]])
