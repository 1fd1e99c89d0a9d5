"""PFI against loops over cells, anchors and objects."""

import dataclasses
import math

import pytest
import torch
from helpers.by_hand import random
from helpers.synthetic_steps import (
    ANCHOR_SHAPES,
    BOXES,
    EMPTY,
    IMAGE_SIZE,
    LABELS,
    STRIDES,
    info,
    pair,
    pair_of,
    synthetic_step,
)

from gkd.detectors import DetectorPair, Needs
from gkd.errors import ConfigError
from gkd.knowledge.methods.pfi import PFI, prediction_guided_loss, rank_loss
from gkd.registry import KNOWLEDGE


def slow_feature_loss(student, teacher):
    """Level by level, cell by cell, anchor by anchor of two records."""
    first, levels = 0, []
    for own, target, stride in zip(student.maps, teacher.maps, STRIDES):
        size, norms = IMAGE_SIZE // stride, []
        for image in range(len(own)):
            total = 0
            for y in range(size):
                for x in range(size):
                    start = first + (y * size + x) * len(ANCHOR_SHAPES)
                    place = [
                        record.dense.logits[image, start + anchor, logit].item()
                        for record in (student, teacher) for anchor in range(len(ANCHOR_SHAPES))
                        for logit in range(record.dense.logits.shape[2])]
                    half = len(place) // 2
                    prediction = sum((a - b) ** 2
                                     for a, b in zip(place[:half], place[half:])) / half
                    feature = sum((own[image, c, y, x].item() - target[image, c, y, x].item()) ** 2
                                  for c in range(own.shape[1])) / own.shape[1]
                    total += (prediction * feature) ** 2
            norms.append(math.sqrt(total) / size ** 2)
        first += size * size * len(ANCHOR_SHAPES)
        levels.append(sum(norms) / len(norms))
    return sum(levels) / len(levels)


def slow_rank_loss(student, teacher, objects, counts):
    """Mean over the objects of an image, then over images."""
    total = 0
    images = [image for image, count in enumerate(counts) for _ in range(count)]
    for number, image in enumerate(images):
        own = [score.item() for score, other in zip(student, objects) if other == number]
        target = [score.item() for score, other in zip(teacher, objects) if other == number]
        own, target = ([math.exp(score) / sum(map(math.exp, scores)) for score in scores]
                       for scores in (own, target))
        total += sum(t * math.log(t / s) for s, t in zip(own, target)) / counts[image]
    return total / len(counts)


def losses_of(step, family='one-stage', **settings):
    module = KNOWLEDGE.build(dict(type='PFI', **settings), default_args=dict(pair=pair(family)))
    return module(step)


@pytest.mark.parametrize('family', ['one-stage', 'two-stage'])
def test_feature_imitation(family):
    step = synthetic_step(family, dtype=torch.float64)
    student, teacher = step.student, step.teacher
    losses = losses_of(step, family)
    expected = 1.5 * slow_feature_loss(student, teacher)
    assert losses['loss_pfi_feature'].item() == pytest.approx(expected)


def test_cells_of_a_wide_map_are_on_their_own():
    features, logits = random(2, 2, 4, 2, 3), random(2, 2, 2 * 3 * 5, 3, seed=1)
    images = []
    for image in range(2):
        one = features[:, image:image + 1], logits[:, image:image + 1]
        cells = [prediction_guided_loss(*one[0][:, :, :, y:y + 1, x:x + 1],
                                        *one[1][:, :, (y * 3 + x) * 5:(y * 3 + x + 1) * 5])
                 for y in range(2) for x in range(3)]
        images.append(torch.stack(cells).square().sum().sqrt() / 6)
    torch.testing.assert_close(prediction_guided_loss(*features, *logits),
                               torch.stack(images).mean())


def test_rank_mimicking():
    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    own, target = (torch.stack([row[label] for row, label in
                                zip(record.logits.sigmoid(), step.labels)])
                   for record in (student, teacher))
    expected = 4 * slow_rank_loss(own, target, step.objects, [*map(len, BOXES)])
    assert losses_of(step)['loss_pfi_rank'].item() == pytest.approx(expected)


def test_rank_loss_of_shuffled_objects_some_without_anchors():
    student, teacher = random(9).sigmoid(), random(9, seed=1).sigmoid()
    objects = torch.tensor([4, 0, 2, 4, 4, 0, 2, 0, 1])
    expected = slow_rank_loss(student, teacher, objects, [3, 0, 4])
    assert rank_loss(student, teacher, objects, [3, 0, 4]).item() == pytest.approx(expected)


def test_ranks_of_a_softmax_head():
    def softmax(detector):
        return dataclasses.replace(detector, sigmoid=False)

    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    module = PFI(DetectorPair(softmax(info()), softmax(info()), STRIDES))
    own, target = (torch.stack([row[label] for row, label in
                                zip(record.logits.softmax(1), step.labels)])
                   for record in (student, teacher))
    expected = 4 * slow_rank_loss(own, target, step.objects, [*map(len, BOXES)])
    loss = module(step)['loss_pfi_rank']
    assert loss.item() == pytest.approx(expected)


def test_the_best_anchor_matters_and_not_only_its_score():
    scores, objects = torch.tensor([0.1, 0.9]), torch.tensor([0, 0])
    assert rank_loss(scores, scores, objects, [1]) == 0
    assert rank_loss(scores, scores.flip(0), objects, [1]) > 0.1
    assert rank_loss(scores, scores - 0.1, objects, [1]).abs() < 1e-6


def test_equal_features_have_no_loss_whatever_is_predicted():
    feature = random(1, 2, 2, 2)
    logits = random(1, 8, 3), random(1, 8, 3, seed=1)
    assert prediction_guided_loss(feature, feature, *logits) == 0
    assert prediction_guided_loss(feature, 0 * feature, logits[0], logits[0]) == 0
    assert prediction_guided_loss(feature, 0 * feature, *logits) > 0


def test_gradients():
    feature, logits = random(2, 2, 2, 1).requires_grad_(), random(2, 4, 3).requires_grad_()
    targets = random(2, 2, 2, 1, seed=1), random(2, 4, 3, seed=1)
    assert torch.autograd.gradcheck(
        lambda own, scores: prediction_guided_loss(own, targets[0], scores, targets[1]),
        (feature, logits))
    scores = random(5).sigmoid().requires_grad_()
    objects = torch.tensor([1, 0, 1, 1, 0])
    assert torch.autograd.gradcheck(
        lambda own: rank_loss(own, random(5, seed=1).sigmoid(), objects, [2, 1]), scores)


@pytest.mark.parametrize('boxes', [EMPTY, dict(boxes=[BOXES[0], torch.zeros(0, 4)],
                                               labels=[LABELS[0], EMPTY['labels'][1]])])
def test_images_without_objects(boxes):
    step = synthetic_step(**boxes)
    student = step.student
    losses = losses_of(step)
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses['loss_pfi_rank'] == 0) == (boxes is EMPTY)
    sum(losses.values()).backward()
    assert student.logits.grad is not None
    assert all(tensor.grad.any() for tensor in (*student.maps, student.dense.logits))


@pytest.mark.parametrize('family, settings', [('two-stage', {}),
                                              ('one-stage', dict(rank_weight=0))])
def test_ranks_can_be_left_out(family, settings):
    module = PFI(pair(family), **settings)
    losses = module(synthetic_step(family))
    assert losses.keys() == {'loss_pfi_feature'}
    assert module.needs == Needs(dense=True)
    assert PFI(pair()).needs == Needs(dense=True, logits=True)


@pytest.mark.parametrize('unfit, settings, reason', [
    (pair_of(info('two-stage')), {}, 'predict different things'),
    (pair_of(info(sigmoid=False)), {}, 'other by softmax'),
    (pair_of(info(anchors=())), {}, 'different anchors'),
    (pair('two-stage'), dict(rank_weight=4.), 'set rank_weight=0'),
    (pair_of(*[info(anchors=(), samples_positives=False)] * 2), {}, 'set rank_weight=0'),
    (pair_of(info(classifies_boxes=False)), {}, 'teacher RetinaNet gives no class logits'),
])
def test_refusals(unfit, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        PFI(unfit, **settings)


def test_anchor_free_detectors_can_imitate_features():
    module = PFI(pair_of(*[info(anchors=(), samples_positives=False)] * 2), rank_weight=0)
    assert module(synthetic_step()).keys() == {'loss_pfi_feature'}


def test_autocast_computes_the_losses_in_float32():
    step = synthetic_step(dtype=torch.bfloat16)
    student, teacher = step.student, step.teacher
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = losses_of(step)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    exact = slow_feature_loss(student, teacher)
    assert losses['loss_pfi_feature'].item() == pytest.approx(1.5 * exact, rel=1e-5)
