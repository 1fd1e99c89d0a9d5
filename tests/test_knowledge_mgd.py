"""MGD against its formula in explicit loops."""

import pytest
import torch
from helpers.by_hand import convolve
from helpers.synthetic_steps import pair, step_4_6, synthetic_step

from gkd.errors import ConfigError
from gkd.knowledge.methods import mgd
from gkd.knowledge.methods.mgd import MGD, random_mask
from gkd.registry import KNOWLEDGE


def build(**settings):
    return MGD(pair(teacher_channels=6, student_channels=4), **settings).double()


def checkerboard(feature, ratio):
    """In place of chance: every other cell is lost, from another one on in every image."""
    images, _, height, width = feature.shape
    mask = feature.new_ones(images, 1, height, width)
    for image in range(images):
        for y in range(height):
            for x in range(width):
                mask[image, 0, y, x] = (image + y + x) % 2
    return mask


@torch.no_grad()
def test_loss_is_that_of_the_paper(monkeypatch):
    monkeypatch.setattr(mgd, 'random_mask', checkerboard)
    module = build(loss_weight=2.)
    step = step_4_6()
    student, teacher = step.student, step.teacher
    expected = 0.
    for level in range(3):
        mask = checkerboard(student.maps[level], None)
        first, _, second = module.generation[level]
        for image in range(2):
            feature = convolve(student.maps[level][image][None], module.adaptation[level])[0]
            hidden = convolve((feature * mask[image])[None], first).clamp(min=0)
            generated = convolve(hidden, second)[0]
            target = teacher.maps[level][image]
            expected += sum((a - b) ** 2 for a, b in zip(generated.flatten().tolist(),
                                                         target.flatten().tolist())) / 2
    losses = module(step)
    assert losses.keys() == {'loss_mgd'}
    torch.testing.assert_close(losses['loss_mgd'].item(), 2 * expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('ratio', [0., 0.3, 0.65])
def test_mask_loses_whole_cells_at_the_ratio(ratio):
    mask = random_mask(torch.empty(2, 5, 200, 200), ratio)
    assert mask.shape == (2, 1, 200, 200)
    assert set(mask.unique().tolist()) <= {0., 1.}
    # Five standard deviations of the mean of 40 000 cells are below 0.0125.
    torch.testing.assert_close(mask.mean((1, 2, 3)), torch.full((2,), 1 - ratio), rtol=0,
                               atol=0.0125)
    if ratio:
        assert (mask[0] != mask[1]).any()
        assert (mask != random_mask(torch.empty(2, 5, 200, 200), ratio)).any()


def test_the_ratio_reaches_the_mask(monkeypatch):
    seen = []
    monkeypatch.setattr(mgd, 'random_mask',
                        lambda feature, ratio: seen.append(ratio) or feature.new_ones(1))
    build(mask_ratio=0.25)(step_4_6())
    assert seen == [0.25] * 3


def test_equal_maps_cost_nothing_where_nothing_is_lost_and_the_block_copies():
    module = MGD(pair(), mask_ratio=0).double()
    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    student.maps = tuple(feature.detach().abs().requires_grad_() for feature in student.maps)
    teacher.maps = tuple(feature.detach().clone() for feature in student.maps)
    with torch.no_grad():
        for generate in module.generation:
            for layer in (generate[0], generate[2]):
                torch.nn.init.dirac_(layer.weight)
                layer.bias.zero_()
    assert module(step)['loss_mgd'].item() == 0


def test_gradients(monkeypatch):
    monkeypatch.setattr(mgd, 'random_mask', checkerboard)
    module = build(loss_weight=1.)
    step = step_4_6()
    student = step.student

    def loss(*maps):
        student.maps = maps
        return module(step)['loss_mgd']

    assert torch.autograd.gradcheck(loss, student.maps, fast_mode=True)


def test_lost_cells_teach_the_student_nothing(monkeypatch):
    monkeypatch.setattr(mgd, 'random_mask', checkerboard)
    step = step_4_6()
    student = step.student
    build()(step)['loss_mgd'].backward()
    for feature in student.maps:
        kept = checkerboard(feature, None).bool()
        gradient = feature.grad.abs().sum(dim=1, keepdim=True)
        assert (gradient[kept] > 0).all() and (gradient[~kept] == 0).all()


def test_defaults_are_the_authors():
    found = [KNOWLEDGE.build(dict(type='MGD', pair=pair(family)))
             for family in ('one-stage', 'two-stage')]
    assert [(module.loss_weight, module.mask_ratio) for module in found] == [(2e-5, 0.65),
                                                                             (5e-7, 0.45)]


def test_equal_channels_are_not_adapted():
    assert not list(MGD(pair()).adaptation.parameters())
    assert MGD(pair(), mask_ratio=0).mask_ratio == 0


@pytest.mark.parametrize('ratio', [-0.1, 1, 1.5])
def test_refuses_an_impossible_ratio(ratio):
    with pytest.raises(ConfigError, match=rf'MGD.mask_ratio = {ratio}: must be'):
        MGD(pair(), mask_ratio=ratio)
