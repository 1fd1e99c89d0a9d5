"""CWD against distributions over cells computed number by number."""

import dataclasses
import math

import pytest
import torch
from helpers.by_hand import random, softmax
from helpers.synthetic_steps import EMPTY, info, pair, synthetic_step

from gkd.detectors import DetectorPair
from gkd.errors import ConfigError
from gkd.knowledge.methods.cwd import CWD, channel_divergence
from gkd.registry import KNOWLEDGE


def slow_channel_divergence(student, teacher, temperature=1.):
    images, channels, height, width = student.shape
    total = 0
    for image in range(images):
        for channel in range(channels):
            own, target = (
                softmax([feature[image, channel, y, x].item()
                         for y in range(height) for x in range(width)], temperature)
                for feature in (student, teacher))
            total += sum(t * math.log(t / s) for s, t in zip(own, target))
    return temperature**2 * total / (images * channels)


@pytest.mark.parametrize('temperature', [1., 4.])
def test_loss(temperature):
    student, teacher = random(2, 3, 4, 5), 2 * random(2, 3, 4, 5, seed=1)
    expected = slow_channel_divergence(student, teacher, temperature)
    assert channel_divergence(student, teacher, temperature).item() == pytest.approx(expected)


def test_equal_maps_have_no_loss_and_shifts_do_not_count():
    student = random(2, 3, 4, 5)
    assert channel_divergence(student, student) == 0
    assert channel_divergence(student, student + random(2, 3, 1, 1, seed=1)).abs() < 1e-12
    assert channel_divergence(student, 2 * student) > 1e-2


def test_gradient():
    student, teacher = random(2, 2, 2, 3).requires_grad_(), random(2, 2, 2, 3, seed=1)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: channel_divergence(x, teacher.detach(), 2.), student)
    channel_divergence(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_levels_are_summed_with_the_published_settings():
    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    losses = KNOWLEDGE.build(dict(type='CWD'), default_args=dict(pair=pair()))(step)
    expected = 5 * sum(map(slow_channel_divergence, student.maps, teacher.maps))
    assert losses.keys() == {'loss_cwd'}
    assert losses['loss_cwd'].item() == pytest.approx(expected)


@pytest.mark.parametrize('method', ['CWD', 'PKD', 'FGD', 'MGD'])
def test_levels_that_are_taught(method):
    """Only their maps receive a gradient, and only they have layers."""
    step = synthetic_step(teacher_channels=12)
    module = KNOWLEDGE.build(dict(type=method, levels=[2, 0], pair=pair(teacher_channels=12)))
    assert len(module.adaptation) == 2
    sum(module(step).values()).backward()
    assert [feature.grad is not None for feature in step.student.maps] == [True, False, True]
    assert all(parameter.grad is not None for parameter in module.parameters())
    with pytest.raises(ConfigError, match=rf'{method}.levels = \[1, 1\]: must name'):
        KNOWLEDGE.build(dict(type=method, levels=[1, 1], pair=pair()))


@pytest.mark.parametrize('method, family, taught', [
    ('CWD', 'one-stage', 4), ('CWD', 'two-stage', 4), ('PKD', 'two-stage', 4),
    ('FGD', 'one-stage', 5), ('FGD', 'two-stage', 4), ('MGD', 'one-stage', 5),
    ('MGD', 'two-stage', 4)])
def test_levels_are_those_of_the_authors(method, family, taught):
    strides = (4, 8, 16, 32, 64)
    five = dataclasses.replace(info(family), strides=strides, channels=(8,) * 5)
    module = KNOWLEDGE.build(dict(type=method, pair=DetectorPair(five, five, strides)))
    assert module.levels == tuple(range(taught))


def test_settings():
    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    loss = CWD(pair(), loss_weight=3., temperature=4.)(step)['loss_cwd']
    expected = 3 * sum(slow_channel_divergence(own, target, 4.)
                       for own, target in zip(student.maps, teacher.maps))
    assert loss.item() == pytest.approx(expected)


def test_teacher_of_another_size_on_empty_images():
    module = CWD(pair(teacher_channels=12))
    step = synthetic_step(teacher_channels=12, **EMPTY)
    student, teacher = step.student, step.teacher
    for feature in teacher.maps:
        feature.requires_grad_()
    module(step)['loss_cwd'].backward()
    # A bias shifts a channel as a whole, which a softmax does not notice: its gradient is 0.
    assert all(layer.weight.grad.abs().sum() > 0 and layer.bias.grad is not None
               for layer in module.adaptation)
    assert all(feature.grad.abs().sum() > 0 for feature in student.maps)
    assert all(feature.grad is None for feature in teacher.maps)


def test_equal_channels_need_no_layer():
    assert not list(CWD(pair()).parameters())


def test_refuses_temperatures_that_are_none():
    with pytest.raises(ConfigError, match='CWD.temperature = 0: must be positive'):
        CWD(pair(), temperature=0)


def test_autocast_computes_the_loss_in_float32():
    student, teacher = (feature.to(torch.bfloat16) for feature in random(2, 2, 3, 4, 4))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = channel_divergence(student, teacher)
    torch.testing.assert_close(loss, channel_divergence(student.float(), teacher.float()))
