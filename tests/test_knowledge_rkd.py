"""RKD against distances and angles in loops over pairs and triples."""

import dataclasses

import pytest
import torch
from helpers.by_hand import random
from helpers.synthetic_steps import BOXES, info, pair, pair_of, synthetic_step

from gkd.detectors import DetectorPair
from gkd.errors import ConfigError
from gkd.knowledge import pool_instances
from gkd.knowledge.methods.rkd import RKD, angle_loss, distance_loss
from gkd.registry import KNOWLEDGE


def smooth_l1(difference):
    return difference ** 2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def slow_distance_loss(student, teacher):
    count = len(student)

    def relations(features):
        values = [[((a - b) ** 2).sum().item() ** 0.5 for b in features] for a in features]
        off = [values[i][j] for i in range(count) for j in range(count) if i != j]
        return [[value * len(off) / sum(off) for value in row] for row in values]

    own, target = relations(student), relations(teacher)
    return sum(smooth_l1(own[i][j] - target[i][j]) for i in range(count)
               for j in range(count)) / count ** 2


def slow_angle_loss(student, teacher):
    count = len(student)

    def cosine(features, at, one, other):
        a, b = features[one] - features[at], features[other] - features[at]
        lengths = a.norm() * b.norm()
        return (a @ b / lengths).item() if lengths > 0 else 0.0

    triples = [(i, j, k) for i in range(count) for j in range(count) for k in range(count)]
    return sum(smooth_l1(cosine(student, *triple) - cosine(teacher, *triple))
               for triple in triples) / len(triples)


BOTH = pytest.mark.parametrize('loss, slow', [(distance_loss, slow_distance_loss),
                                              (angle_loss, slow_angle_loss)])


@BOTH
def test_losses_of_spaces_of_different_dimension(loss, slow):
    student, teacher = random(5, 3), random(5, 4, seed=1) * 3
    assert loss(student, teacher).item() == pytest.approx(slow(student, teacher))


@BOTH
def test_a_turned_and_scaled_space_costs_nothing(loss, slow):
    student = random(6, 3)
    turn, _ = torch.linalg.qr(random(3, 3, seed=1))
    assert loss(student, 4 * student @ turn + 7).abs() < 1e-12
    assert loss(student, student * torch.tensor([1.0, 1.0, 3.0])) > 1e-3


@BOTH
def test_gradients(loss, slow):
    student, teacher = random(4, 3).requires_grad_(), random(4, 2, seed=1)
    assert torch.autograd.gradcheck(lambda own: loss(own, teacher), student)


@BOTH
@pytest.mark.parametrize('count', [0, 1, 2])
def test_few_instances(loss, slow, count):
    student = random(count, 3).requires_grad_()
    value = loss(student, random(count, 2, seed=1))
    value.backward()
    assert value < 1e-12 and student.grad.isfinite().all()


@BOTH
def test_instances_that_look_the_same_to_the_student_alone(loss, slow):
    """As on coarse maps: no direction, and no gradient that is divided by nothing."""
    student = random(1, 3).repeat(4, 1)
    student[3] += 1
    student.requires_grad_()
    loss(student, random(4, 2, seed=1)).backward()
    assert student.grad.isfinite().all() and student.grad.abs().max() < 10


def test_the_step_is_taught_with_the_published_settings():
    step = synthetic_step(student_channels=4, teacher_channels=6, dtype=torch.float64,
                          progress=0.25)
    module = KNOWLEDGE.build(dict(type='RKD', pair=pair(teacher_channels=6, student_channels=4)))
    losses = module(step)
    pooled = [[pool_instances(part.maps[level], step.boxes, 1 / stride)
               for part in (step.student, step.teacher)]
              for level, stride in enumerate(step.strides)]
    for name, factor, loss in (('loss_rkd_distance', 5, distance_loss),
                               ('loss_rkd_angle', 10, angle_loss)):
        expected = factor * 0.75 * sum(loss(*level) for level in pooled)
        torch.testing.assert_close(losses[name], expected)
    assert losses.keys() == {'loss_rkd_distance', 'loss_rkd_angle'}
    without = RKD(pair(teacher_channels=6, student_channels=4), decay=False)(step)
    torch.testing.assert_close(0.75 * without['loss_rkd_angle'], losses['loss_rkd_angle'])


def test_ground_truth_and_levels():
    step = synthetic_step(dtype=torch.float64)
    losses = RKD(pair(), instances='gt', levels=[1])(step)
    pooled = [pool_instances(part.maps[1], BOXES, 1 / 16) for part in (step.student, step.teacher)]
    torch.testing.assert_close(losses['loss_rkd_distance'], 5 * distance_loss(*pooled))


def test_levels_may_differ_in_their_channels():
    step = synthetic_step(dtype=torch.float64)
    step.teacher.maps = (step.teacher.maps[0], *(feature.repeat(1, 2, 1, 1)
                                                 for feature in step.teacher.maps[1:]))
    teacher = dataclasses.replace(info(), channels=(8, 16, 16))
    losses = RKD(pair_of(teacher))(step)
    expected = sum(distance_loss(*(pool_instances(part.maps[level], step.boxes, 1 / stride)
                                   for part in (step.student, step.teacher)))
                   for level, stride in enumerate(step.strides))
    torch.testing.assert_close(losses['loss_rkd_distance'], 5 * expected)


def test_of_many_instances_some_are_drawn(monkeypatch):
    boxes = [(torch.rand(5, 2, 2) * 60).sort(dim=1).values.flatten(1) for _ in range(2)]
    step = synthetic_step(dtype=torch.float64, boxes=boxes, labels=[torch.arange(5) % 3] * 2)
    monkeypatch.setattr(torch, 'randperm', lambda count, device: torch.arange(count).flip(0))
    losses = RKD(pair(), max_instances=3)(step)
    pooled = [[pool_instances(part.maps[level], step.boxes, 1 / stride).flip(0)[:3]
               for part in (step.student, step.teacher)]
              for level, stride in enumerate(step.strides)]
    torch.testing.assert_close(losses['loss_rkd_angle'],
                               10 * sum(angle_loss(*level) for level in pooled))
    assert losses['loss_rkd_angle'] > 0


@pytest.mark.parametrize('unfit, settings, reason', [
    (pair(), dict(instances='all'), "RKD.instances = 'all'"),
    (pair(), dict(max_instances=1), 'RKD.max_instances = 1'),
    (DetectorPair(info(), info(samples_positives=False), pair().strides),
     dict(instances='positives'), 'samples no positive boxes'),
    (pair(), dict(levels=[5]), r'RKD.levels = \[5\]')])
def test_refusals(unfit, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        RKD(unfit, **settings)
