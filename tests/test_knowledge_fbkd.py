"""FBKD against its formulas in explicit loops, and its block against mmcv's."""

import math

import pytest
import torch
from helpers.by_hand import convolve, random
from helpers.synthetic_steps import STRIDES, info, pair, step_4_6, synthetic_step
from torch._subclasses import FakeTensorMode

from gkd.detectors import DetectorPair
from gkd.errors import ConfigError
from gkd.knowledge.attention import attention, attention_masks, masked_squared_differences
from gkd.knowledge.methods.fbkd import FBKD, NonLocal, feature_masks, relate
from gkd.registry import KNOWLEDGE

TERMS = {'loss_fbkd_attention', 'loss_fbkd_feature', 'loss_fbkd_relation'}


def build(detectors=None, **settings):
    """FBKD in float64 with random parameters: as it starts, its relations are but the maps."""
    module = FBKD(detectors or pair(teacher_channels=6, student_channels=4), **settings).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def slow_mask(values, temperature):
    """Softmax of a list of numbers, times their number."""
    largest = max(values)
    exponentials = [math.exp((value - largest) / temperature) for value in values]
    return [len(values) * value / sum(exponentials) for value in exponentials]


def slow_masks(feature, image, temperature):
    _, channels, height, width = feature.shape
    cells = [sum(abs(feature[image, c, y, x].item()) for c in range(channels)) / channels
             for y in range(height) for x in range(width)]
    planes = [sum(abs(feature[image, c, y, x].item()) for y in range(height)
                  for x in range(width)) / (height * width) for c in range(channels)]
    return slow_mask(cells, temperature), slow_mask(planes, temperature)


def slow_relation(block, feature):
    """The non-local block over all pairs of cells, with the statistics of the batch."""
    size = feature.shape[2:]
    queries = convolve(feature, block.queries).flatten(2)
    keys, values = (slow_pool(convolve(feature, layer), block.pooling)
                    for layer in (block.keys, block.values))
    related = torch.zeros_like(queries)
    cells = keys.shape[2]
    for image in range(len(feature)):
        for i in range(queries.shape[2]):
            for j in range(cells):
                affinity = (queries[image, :, i] * keys[image, :, j]).sum()
                related[image, :, i] += affinity * values[image, :, j] / cells
    last, norm = block.out
    related = convolve(related.unflatten(2, size), last)
    for c in range(related.shape[1]):
        plane = related[:, c]
        deviation = (plane.var(unbiased=False) + norm.eps).sqrt()
        related[:, c] = (plane - plane.mean()) / deviation * norm.weight[c] + norm.bias[c]
    return feature + related


def slow_pool(feature, window):
    """Maxima of whole windows of a map, ``(B, C, windows)``; a smaller map is one window."""
    height, width = (min(window, length) for length in feature.shape[2:])
    tiles = [feature[:, :, y:y + height, x:x + width].amax((2, 3))
             for y in range(0, feature.shape[2] - height + 1, height)
             for x in range(0, feature.shape[3] - width + 1, width)]
    return torch.stack(tiles, dim=2)


def slow_losses(level, student, teacher, temperature):
    """A level's attention, feature and relation loss."""
    images, _, height, width = student.shape
    adapted = convolve(student, level.feature_adaptation)
    feature = 0.
    for image in range(images):
        student_masks = slow_masks(adapted, image, temperature)
        teacher_masks = slow_masks(teacher, image, temperature)
        for c in range(teacher.shape[1]):
            for y in range(height):
                for x in range(width):
                    cell = y * width + x
                    feature += ((adapted[image, c, y, x] - teacher[image, c, y, x]).item() ** 2
                                * (student_masks[0][cell] + teacher_masks[0][cell]) / 2
                                * (student_masks[1][c] + teacher_masks[1][c]) / 2)
    cells = convolve(student.abs().mean(1, keepdim=True), level.spatial_adaptation)[:, 0]
    spatial = ((cells - teacher.abs().mean(1)) ** 2).sum().sqrt()
    channels = torch.stack([level.channel_adaptation.weight @ row + level.channel_adaptation.bias
                            for row in student.abs().mean((2, 3))])
    channel = ((channels - teacher.abs().mean((2, 3))) ** 2).sum().sqrt()
    relation = (convolve(slow_relation(level.student_relation, student),
                         level.relation_adaptation)
                - slow_relation(level.teacher_relation, teacher))
    return spatial + channel, math.sqrt(feature), (relation ** 2).sum().sqrt()


@torch.no_grad()
def test_losses_are_those_of_the_paper():
    module = build(attention_weight=2., feature_weight=3., relation_weight=5., temperature=0.4)
    step = step_4_6()
    student, teacher = step.student, step.teacher
    losses = module(step)
    attention, feature, relation = (sum(parts) for parts in zip(*(
        slow_losses(*level, 0.4) for level in zip(module.levels, student.maps, teacher.maps))))
    expected = dict(loss_fbkd_attention=2 * attention, loss_fbkd_feature=3 * feature,
                    loss_fbkd_relation=5 * relation)
    assert losses.keys() == expected.keys() == TERMS
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].item(), float(value), rtol=1e-9, atol=0)


@pytest.mark.parametrize('pooling', [1, 2, 3, 8])
def test_non_local_block(pooling):
    """On a map that no window divides evenly, and one that is smaller than a window."""
    block = NonLocal(6, 4, pooling).double()
    feature = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(block(feature), feature)  # it starts out as nothing
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    torch.testing.assert_close(block(feature), slow_relation(block, feature))


def test_relations_of_a_single_cell():
    """The batch is its own mean; torch's own batch normalisation refuses it."""
    block = NonLocal(6, 4, pooling=2).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    feature = torch.randn(1, 6, 1, 1, dtype=torch.float64)
    related = block(feature)
    torch.testing.assert_close(related, slow_relation(block, feature))
    related.sum().backward()  # DDP waits for the gradients of all parameters
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_sizes_of_the_blocks_are_the_authors():
    wide = info(channels=256)
    levels = FBKD(DetectorPair(wide, wide, STRIDES)).levels
    for block in (part for level in levels[:1] for part in (level.student_relation,
                                                            level.teacher_relation)):
        assert (block.queries.out_channels, block.pooling) == (64, 8)
    assert [(level.student_relation.keys.out_channels, level.student_relation.pooling)
            for level in levels] == [(64, 8), (64, 4), (128, 2)]


def test_relations_start_large_enough_for_batch_norm():
    """What is normalised must not drown in the epsilon that is added to its variance."""
    block = NonLocal(256, 64, 8)
    seen = []
    block.out[0].register_forward_hook(lambda layer, _, result: seen.append(result))
    block(torch.randn(2, 256, 32, 32))
    block.out[1].weight.data.fill_(1)
    normalised = block.out[1](seen[0])
    assert normalised.std() > 0.5


def test_relations_of_a_fine_level_need_no_matrix_of_its_cells():
    with FakeTensorMode():
        largest = 0

        class Largest(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal largest
                result = function(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor):
                    largest = max(largest, result.numel())
                return result

        feature = torch.empty(2, 64, 200, 336)
        with Largest():
            relate(feature, feature, feature)
    assert largest <= feature.numel()


def test_equal_maps_cost_nothing_and_have_a_finite_gradient():
    """Where the adaptation changes nothing and both blocks are alike."""
    detectors = pair()
    module = build(detectors)
    step = synthetic_step(dtype=torch.float64)
    student, teacher = step.student, step.teacher
    teacher.maps = tuple(feature.detach().clone() for feature in student.maps)
    eye = torch.eye(8, dtype=torch.float64)
    with torch.no_grad():
        for level in module.levels:
            level.teacher_relation.load_state_dict(level.student_relation.state_dict())
            for layer in (level.feature_adaptation, level.channel_adaptation,
                          level.relation_adaptation):
                layer.weight.copy_(eye.view_as(layer.weight))
                layer.bias.zero_()
            level.spatial_adaptation.weight.zero_()
            level.spatial_adaptation.weight[0, 0, 1, 1] = 1
            level.spatial_adaptation.bias.zero_()
    losses = module(step)
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-12)
    sum(losses.values()).backward()
    assert all(feature.grad.isfinite().all() for feature in student.maps)


@pytest.mark.parametrize('term', sorted(TERMS - {'loss_fbkd_feature'}))
def test_gradients(term):
    module = build()
    step = step_4_6()
    student = step.student

    def loss(*maps):
        student.maps = maps
        return module(step)[term]

    assert torch.autograd.gradcheck(loss, student.maps, fast_mode=True)


def test_gradients_of_relations_to_fewer_cells():
    parts = random(2, 3, 2, 4), random(2, 3, 1, 2, seed=1), random(2, 4, 1, 2, seed=2)
    assert torch.autograd.gradcheck(relate, [part.requires_grad_() for part in parts])


def test_levels_with_fewer_channels_are_masked_by_their_own():
    maps = [random(2, channels, 3, 2, seed=channels) for channels in (4, 6)]
    zeros = list(map(torch.zeros_like, maps))
    together = masked_squared_differences(zeros, maps, *attention_masks(attention(maps), 0.5))
    for level, own, other in zip(together, maps, zeros):
        alone = masked_squared_differences([other], [own], *attention_masks(attention([own]), 0.5))
        torch.testing.assert_close(level, alone[0])


def test_masks_have_no_gradient():
    """The imitation's gradient is that of fixed masks, not the whole derivative."""
    module = build(feature_weight=1.)
    step = step_4_6()
    student, teacher = step.student, step.teacher
    loss = module(step)['loss_fbkd_feature']
    level = module.levels[2]
    adapted = level.feature_adaptation(student.maps[2])
    weight = []
    for image in range(2):
        (s_cells, s_planes), (t_cells, t_planes) = (
            slow_masks(feature, image, 0.1) for feature in (adapted, teacher.maps[2]))
        cells = (torch.tensor(s_cells) + torch.tensor(t_cells)).view(1, *adapted.shape[2:]) / 2
        weight.append(cells * (torch.tensor(s_planes) + torch.tensor(t_planes))[:, None, None] / 2)
    fixed = ((adapted - teacher.maps[2]) ** 2 * torch.stack(weight)).sum().sqrt()
    expected, = torch.autograd.grad(fixed, student.maps[2])
    actual, = torch.autograd.grad(loss, student.maps[2])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_defaults_are_the_authors():
    one_stage, two_stage = (KNOWLEDGE.build(dict(type='FBKD', pair=pair(family)))
                            for family in ('one-stage', 'two-stage'))
    found = [(module.attention_weight, module.feature_weight, module.relation_weight,
              module.temperature) for module in (one_stage, two_stage)]
    assert found == [(2.4e-2, 4.2e-4, 4.2e-4, 0.1), (4e-3, 7e-5, 7e-5, 0.5)]


def test_weight_zero_is_not_the_default():
    assert FBKD(pair(), attention_weight=0).attention_weight == 0


def test_refuses_a_temperature_that_divides_by_nothing():
    with pytest.raises(ConfigError, match=r'FBKD.temperature = 0: must be positive'):
        FBKD(pair(), temperature=0)


def test_relations_and_masks_are_computed_in_float32_under_autocast():
    maps = [torch.randn(2, 4, 5, 6).bfloat16() for _ in range(3)]
    wide = [feature.float() for feature in maps]

    def masks_of(maps):
        return feature_masks(*(attention([feature]) for feature in maps[:2]), 0.5)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        related, masks = relate(*maps), masks_of(maps)
    torch.testing.assert_close(related, relate(*wide))
    torch.testing.assert_close(masks, masks_of(wide))
