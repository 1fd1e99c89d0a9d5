"""PKD against the correlation coefficient computed number by number."""

import pytest
import torch
from helpers.by_hand import random
from helpers.synthetic_steps import EMPTY, STRIDES, pair, synthetic_step

from gkd.errors import ConfigError
from gkd.knowledge.methods.pkd import PKD, pearson_loss
from gkd.registry import KNOWLEDGE


def slow_pearson_loss(student, teacher):
    """1 - r, channel by channel, number by number."""
    images, channels, height, width = student.shape
    total = 0
    for channel in range(channels):
        values = [(student[b, channel, y, x].item(), teacher[b, channel, y, x].item())
                  for b in range(images) for y in range(height) for x in range(width)]
        count = len(values)
        mean_s, mean_t = (sum(value[side] for value in values) / count for side in (0, 1))
        covariance = sum((s - mean_s) * (t - mean_t) for s, t in values)
        variance_s = sum((s - mean_s) ** 2 for s, _ in values)
        variance_t = sum((t - mean_t) ** 2 for _, t in values)
        total += 1 - covariance / (variance_s * variance_t) ** 0.5
    return total / channels


def test_loss_is_one_minus_the_correlation():
    student, teacher = 3 * random(2, 3, 4, 5) + 1, random(2, 3, 4, 5, seed=1) - 2
    expected = torch.tensor(slow_pearson_loss(student, teacher), dtype=torch.float64)
    torch.testing.assert_close(pearson_loss(student, teacher), expected)


def test_mean_and_magnitude_do_not_count():
    student = random(2, 3, 4, 5)
    scale, shift = random(3, 1, 1, seed=1).exp(), random(3, 1, 1, seed=2)
    assert pearson_loss(student, scale * student + shift) < 1e-12
    torch.testing.assert_close(pearson_loss(student, -student), torch.tensor(2.).double())


def test_gradient():
    student, teacher = random(2, 2, 2, 3).requires_grad_(), random(2, 2, 2, 3, seed=1)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pearson_loss(x, teacher.detach()), student)
    pearson_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize('shape', [(1, 2, 1, 1), (2, 2, 3, 3)])
def test_constant_channels_are_finite_and_pass_no_gradient_on(shape):
    student = torch.full(shape, 0.1, requires_grad=True)
    loss = pearson_loss(student, random(*shape).float())
    loss.backward()
    assert loss.isfinite() and torch.equal(student.grad, torch.zeros(shape))


def test_a_channel_that_varies_little_counts_like_the_others():
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    quiet = torch.tensor([1, 1e-4, 1], dtype=torch.float64).reshape(3, 1, 1)
    torch.testing.assert_close(pearson_loss(quiet * student, teacher),
                               pearson_loss(student, teacher))


@pytest.mark.parametrize('family, weight', [('one-stage', 10), ('two-stage', 6)])
def test_levels_are_summed_with_the_authors_weight(family, weight):
    step = synthetic_step(family, dtype=torch.float64)
    student, teacher = step.student, step.teacher
    losses = KNOWLEDGE.build(dict(type='PKD'), default_args=dict(pair=pair(family)))(step)
    expected = weight * sum(map(slow_pearson_loss, student.maps, teacher.maps))
    assert losses.keys() == {'loss_pkd'}
    torch.testing.assert_close(losses['loss_pkd'].item(), expected)


def test_only_the_finest_levels_are_taught():
    """A layer of a level that is not taught would never get a gradient."""
    module = PKD(pair(teacher_channels=12), num_levels=2)
    step = synthetic_step(teacher_channels=12)
    student = step.student
    module(step)['loss_pkd'].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert len(list(module.parameters())) == 2 * 2
    assert [feature.grad is None for feature in student.maps] == [False, False, True]
    assert len(PKD(pair(), num_levels=9).adaptation) == len(STRIDES)


def test_teacher_of_another_kind_and_size():
    module = PKD(pair(teacher_channels=12))
    step = synthetic_step(teacher_channels=12, **EMPTY)
    student, teacher = step.student, step.teacher
    for feature in teacher.maps:
        feature.requires_grad_()
    module(step)['loss_pkd'].backward()
    assert all(feature.grad.abs().sum() > 0 for feature in student.maps)
    assert all(feature.grad is None for feature in teacher.maps)


def test_equal_channels_need_no_layer():
    assert not list(PKD(pair()).parameters())


def test_refuses_no_levels():
    with pytest.raises(ConfigError, match='PKD.num_levels = 0'):
        PKD(pair(), num_levels=0)


def test_autocast_computes_the_loss_in_float32():
    student, teacher = (feature.to(torch.bfloat16) for feature in random(2, 2, 3, 4, 4))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = pearson_loss(student, teacher)
    torch.testing.assert_close(loss, pearson_loss(student.float(), teacher.float()))
