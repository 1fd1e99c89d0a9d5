"""FGD against its formulas in explicit loops."""

import dataclasses
import math

import pytest
import torch
from helpers.by_hand import softmax
from helpers.synthetic_steps import BOXES, pair, step_4_6, synthetic_step

from gkd.errors import ConfigError
from gkd.knowledge.methods.fgd import FGD, background_mask, object_masks
from gkd.registry import KNOWLEDGE

TERMS = {'loss_fgd_fg', 'loss_fgd_bg', 'loss_fgd_attention', 'loss_fgd_global'}
NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def build(detectors=None, **settings):
    """FGD in float64 with random parameters: as it starts, its context blocks add nothing."""
    module = FGD(detectors or pair(teacher_channels=6, student_channels=4), **settings).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def slow_attention(feature, temperature):
    """A map ``(C, H, W)``'s attention: ``cells[y][x]`` and ``planes[c]``."""
    channels, height, width = feature.shape
    values = feature.abs().tolist()
    cells = softmax([sum(values[c][y][x] for c in range(channels)) / channels
                     for y in range(height) for x in range(width)], temperature)
    planes = softmax([sum(values[c][y][x] for y in range(height) for x in range(width))
                      / (height * width) for c in range(channels)], temperature)
    return ([[height * width * cells[y * width + x] for x in range(width)]
             for y in range(height)], [channels * plane for plane in planes])


def slow_masks(boxes, stride, size):
    """An image's weights of objects and of background, cell by cell."""
    height, width = size
    foreground = [[0.] * width for _ in range(height)]
    for x1, y1, x2, y2 in boxes.tolist():
        left, top = math.floor(x1 / stride), math.floor(y1 / stride)
        right, bottom = math.ceil(x2 / stride), math.ceil(y2 / stride)
        weight = 1 / ((right - left + 1) * (bottom - top + 1))
        for y in range(max(top, 0), min(bottom, height - 1) + 1):
            for x in range(max(left, 0), min(right, width - 1) + 1):
                foreground[y][x] = max(foreground[y][x], weight)
    free = sum(value == 0 for row in foreground for value in row)
    background = [[1 / free if value == 0 else 0. for value in row] for row in foreground]
    return foreground, background


def slow_context(block, feature):
    """A map ``(C, H, W)`` plus the transformed mean of its cells, weighed by attention."""
    channels, height, width = feature.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    attend = block.conv_mask
    weights = softmax([(attend.weight[0, :, 0, 0] @ feature[:, y, x] + attend.bias[0]).item()
                       for y, x in cells], 1)
    context = sum(weight * feature[:, y, x] for weight, (y, x) in zip(weights, cells))
    squeeze, norm, _, expand = block.channel_add_conv
    hidden = squeeze.weight[:, :, 0, 0] @ context + squeeze.bias
    hidden = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + norm.eps).sqrt()
    hidden = (hidden * norm.weight.flatten() + norm.bias.flatten()).clamp(min=0)
    return feature + (expand.weight[:, :, 0, 0] @ hidden + expand.bias)[:, None, None]


def slow_losses(module, step):
    """Sums over levels and means over images of the four unweighted losses."""
    student, teacher = step.student, step.teacher
    fg = bg = attention = context = 0.
    for level, stride in enumerate(step.strides):
        adapt = module.adaptation[level]
        for image, boxes in enumerate(step.gt_boxes):
            own = torch.einsum('dc,chw->dhw', adapt.weight[:, :, 0, 0],
                               student.maps[level][image]) + adapt.bias[:, None, None]
            target = teacher.maps[level][image]
            channels, height, width = target.shape
            objects, rest = slow_masks(boxes, stride, (height, width))
            cells, planes = slow_attention(target, module.temperature)
            own_cells, own_planes = slow_attention(own, module.temperature)
            difference = (target - own).tolist()
            for y in range(height):
                for x in range(width):
                    attention += abs(cells[y][x] - own_cells[y][x])
                    for c in range(channels):
                        focus = cells[y][x] * planes[c] * difference[c][y][x] ** 2
                        fg += objects[y][x] * focus
                        bg += rest[y][x] * focus
            attention += sum(abs(a - b) for a, b in zip(planes, own_planes))
            context += ((slow_context(module.student_context[level], own)
                         - slow_context(module.teacher_context[level], target)) ** 2).sum().item()
    return [loss / len(step.gt_boxes) for loss in (fg, bg, attention, context)]


@torch.no_grad()
@pytest.mark.parametrize('boxes', [BOXES, [BOXES[0], NO_BOXES]], ids=['all', 'one empty'])
def test_losses_are_those_of_the_paper(boxes):
    module = build(foreground_weight=2., background_weight=3., attention_weight=5.,
                   global_weight=7., temperature=0.4)
    step = step_4_6(boxes, labels=[torch.zeros(len(own), dtype=torch.long)
                                   for own in boxes])
    losses = module(step)
    fg, bg, attention, context = slow_losses(module, step)
    expected = dict(loss_fgd_fg=2 * fg, loss_fgd_bg=3 * bg, loss_fgd_attention=5 * attention,
                    loss_fgd_global=7 * context)
    assert losses.keys() == expected.keys() == TERMS
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].item(), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize('stride', [4, 8, 64])
def test_masks(stride):
    """Of boxes that overlap, leave the map, fill it, and of images with fewer boxes or none."""
    boxes = [torch.tensor([[0., 0., 64., 64.], [10., 12., 30., 29.], [11., 11., 70., 20.]]),
             NO_BOXES, torch.tensor([[-9., 32., 8., 40.]])]
    size = (64 // stride, 64 // stride)
    [foreground] = object_masks(boxes, [stride], [size])
    background = background_mask(foreground.flatten(1)).view_as(foreground)
    for image, own in enumerate(boxes[1:], 1):
        objects, rest = slow_masks(own, stride, size)
        torch.testing.assert_close(foreground[image], torch.tensor(objects))
        torch.testing.assert_close(background[image], torch.tensor(rest))
    assert (background[0] == 0).all() and (foreground[0] > 0).all()
    assert background[1].sum().item() == pytest.approx(1)


def test_equal_maps_cost_nothing():
    detectors = pair()
    module = build(detectors)
    for own, target in zip(module.student_context, module.teacher_context):
        target.load_state_dict(own.state_dict())
    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    teacher.maps = tuple(feature.detach().clone() for feature in student.maps)
    losses = module(step)
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(feature.grad.isfinite().all() for feature in student.maps)


@pytest.mark.parametrize('term', sorted(TERMS))
def test_gradients(term):
    module = build(**{name: 1. for name in ('foreground_weight', 'background_weight',
                                            'attention_weight', 'global_weight')})
    step = step_4_6()
    student = step.student

    def loss(*maps):
        student.maps = maps
        return module(step)[term]

    assert torch.autograd.gradcheck(loss, student.maps, fast_mode=True)


@pytest.mark.parametrize('boxes', [BOXES, [NO_BOXES, BOXES[1]], [NO_BOXES, NO_BOXES]],
                         ids=['all', 'one empty', 'none'])
def test_gradients_reach_the_student_and_every_layer_but_not_the_teacher(boxes):
    step = step_4_6(boxes, labels=[torch.zeros(len(own), dtype=torch.long)
                                   for own in boxes])
    student, teacher = step.student, step.teacher
    for feature in teacher.maps:
        feature.requires_grad_()
    module = FGD(pair(teacher_channels=6, student_channels=4)).double()  # as a training starts
    losses = module(step)
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses['loss_fgd_fg'] > 0) == any(map(len, boxes))
    assert losses['loss_fgd_bg'] > 0
    sum(losses.values()).backward()
    assert all(feature.grad.abs().sum() > 0 for feature in student.maps)
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(feature.grad is None for feature in teacher.maps)


def test_defaults_are_the_authors():
    one_stage, two_stage = pair(), pair('two-stage')
    anchor_free = dataclasses.replace(one_stage, student=dataclasses.replace(
        one_stage.student, anchors=()))
    found = []
    for detectors in (one_stage, anchor_free, two_stage):
        module = KNOWLEDGE.build(dict(type='FGD', pair=detectors))
        found.append((module.foreground_weight, module.background_weight, module.attention_weight,
                      module.global_weight, module.temperature))
    assert found == [(1e-3, 5e-4, 5e-4, 5e-6, 0.5), (1.6e-3, 8e-4, 8e-4, 8e-6, 0.5),
                     (5e-5, 2.5e-5, 5e-5, 5e-7, 0.5)]


def test_weight_zero_is_not_the_default():
    assert FGD(pair(), background_weight=0).background_weight == 0


def test_refuses_a_temperature_that_divides_by_nothing():
    with pytest.raises(ConfigError, match=r'FGD.temperature = -1: must be positive'):
        FGD(pair(), temperature=-1)


def test_losses_are_computed_in_float32_under_autocast():
    """Maps of equal channels pass no layer before all but the global loss: these are exact."""
    module = FGD(pair())
    step = synthetic_step()
    student, teacher = step.student, step.teacher
    for record in (student, teacher):
        record.maps = tuple(feature.detach().bfloat16() for feature in record.maps)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = module(step)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for record in (student, teacher):
        record.maps = tuple(feature.float() for feature in record.maps)
    exact = module(step)
    for name in TERMS - {'loss_fgd_global'}:
        torch.testing.assert_close(losses[name], exact[name], rtol=1e-6, atol=0)
