"""Global knowledge in the teacher's class space."""

import pytest
import torch
from helpers import small_detectors as small
from helpers.devices import StayOnDevice, fake_gpu, half_on_cpu, to_fake
from helpers.distillers import build_distiller, losses_of
from helpers.synthetic_steps import info, pair_of, synthetic_step
from operations import Operations
from torch import nn
from torch._subclasses import FakeTensorMode

from gkd.bank import PrototypeBank
from gkd.detectors.dense import class_layers
from gkd.detectors.step import recorded
from gkd.errors import ConfigError
from gkd.frameworks import to_batch
from gkd.knowledge import RobustDistillingModule
from gkd.knowledge.class_space import (
    ClassSpaceKnowledge,
    cell_confidence,
    class_directions,
    class_space_loss,
    confidence,
)
from gkd.knowledge.precision import cast_weights
from gkd.prototypes.features import class_features, instance_features

IN_CLASS_SPACE = dict(type='RobustDistillingModule', global_knowledge=dict(space='classes'))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def able(**traits):
    """Traits of a detector whose head has class layers."""
    return info(has_class_layers=True, **traits)


def class_space_pair(**traits):
    return pair_of(able(), info(**traits))


# --- The loss ------------------------------------------------------------------------------------

def test_loss_is_the_divergence_of_projections():
    student, teacher, prototypes = random(5, 4), random(5, 4, seed=1), random(7, 4, seed=2)
    weights = torch.tensor([0.0, 0.1, 1.0, 0.5, 0.2], dtype=torch.float64)
    length = sum(prototype.norm() for prototype in prototypes) / 7
    expected = 0
    for cell in range(5):
        p, q = (torch.stack([role[cell].dot(prototype) / (prototype.norm() * length)
                             for prototype in prototypes]).div(0.3).softmax(dim=0)
                for role in (teacher, student))
        expected += weights[cell] * (p * (p / q).log()).sum()
    loss = class_space_loss(student, teacher, class_directions(prototypes), weights,
                            temperature=0.3)
    torch.testing.assert_close(loss, expected / weights.sum())


def test_a_weak_response_is_not_a_strong_one():
    """By the strength of the response, a head ranks the boxes of one object."""
    cells, directions = random(5, 4), class_directions(random(7, 4, seed=2))
    assert class_space_loss(cells / 2, cells, directions, torch.ones(5), 0.1) > 0.01
    assert class_space_loss(cells, cells, directions, torch.ones(5), 0.1) == 0
    larger = class_directions(9 * random(7, 4, seed=2))
    torch.testing.assert_close(9 * larger, directions)


def test_loss_teaches_the_student_alone():
    student, teacher, prototypes = (random(5, 4, seed=seed).requires_grad_() for seed in range(3))
    class_space_loss(student, teacher, class_directions(prototypes.detach()), torch.ones(5),
                     0.1).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_prototypes_without_a_response_tell_nothing():
    loss = class_space_loss(random(3, 4), random(3, 4, seed=1),
                            class_directions(torch.zeros(2, 4).double()), torch.ones(3), 0.1)
    assert loss == 0


@pytest.mark.parametrize('cells, prototypes, weight', [(3, 4, 0.0), (0, 4, 1.0), (3, 0, 1.0)])
def test_nothing_to_compare_is_no_loss(cells, prototypes, weight):
    student = random(cells, 6).requires_grad_()
    directions = class_directions(random(prototypes, 6, seed=2))
    loss = class_space_loss(student, random(cells, 6, seed=1), directions,
                            torch.full((cells,), weight), 0.1)
    loss.backward()
    assert loss == 0 and not student.grad.any()


# --- The cells -----------------------------------------------------------------------------------

def test_a_cell_has_the_confidence_of_its_best_anchor_and_class():
    fine, coarse = torch.full((1, 4, 1, 2), -9.0), torch.full((1, 2, 1, 1), -9.0)
    fine[0, 3, 0, 0], coarse[0, 0] = 2.0, 1.0  # the second anchor's second class; one anchor
    found = cell_confidence((fine, coarse), num_logits=2, sigmoid=True)
    torch.testing.assert_close(found, torch.tensor([[2.0, -9.0, 1.0]]).sigmoid())


def test_background_adds_no_confidence():
    logits = torch.tensor([[0.5, 9.0], [0.0, 1.0]])  # two anchors of one class and the background
    scores = logits.softmax(dim=-1)[:, 0]
    assert torch.equal(confidence(logits, sigmoid=False), scores)
    found = cell_confidence((logits.reshape(1, 4, 1, 1),), num_logits=2, sigmoid=False)
    torch.testing.assert_close(found, scores.max()[None, None])


def readable_step():
    """A step whose maps are read as they are, and the student's adapted maps."""
    step = synthetic_step(bank=None)
    step.class_layers, step.teacher.class_maps = nn.Identity(), step.teacher.maps
    step.bank = PrototypeBank(student=[random(3, 8).float()], teacher=[random(3, 8).float()],
                              offsets=[torch.tensor([0, 3])],
                              class_features=[random(3, 8).float()])
    return step, [feature.detach().clone().requires_grad_() for feature in step.student.maps]


def test_only_the_most_confident_cells_are_compared():
    step, adapted = readable_step()
    part = ClassSpaceKnowledge(class_space_pair(), num_cells=2)
    part(step, adapted, decay=1.0)['loss_global'].backward()
    taught = sum(int(feature.grad.any(dim=1).sum()) for feature in adapted)
    assert taught == 2 * len(adapted[0])


def test_cells_are_those_of_which_either_detector_is_most_confident():
    step, adapted = readable_step()
    for part, image, cell in ((step.student, 0, 5), (step.teacher, 1, 9)):
        part.score_maps = tuple(torch.full_like(level, -9.0) for level in part.score_maps)
        part.score_maps[0][image, 3].view(-1)[cell] = 9
    ClassSpaceKnowledge(class_space_pair(), num_cells=1)(
        step, adapted, decay=1.0)['loss_global'].backward()
    taught = torch.cat([feature.grad.any(dim=1).flatten(1) for feature in adapted], dim=1)
    assert taught.nonzero().tolist() == [[0, 5], [1, 9]]


class Halved(nn.Linear):
    """Computes something with its weights before it uses them."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / 2, self.bias)


def test_weights_that_a_layer_changes_itself_keep_their_precision():
    layers = nn.Sequential(nn.Linear(2, 2), Halved(2, 2))
    cast = cast_weights(layers, torch.bfloat16)
    assert [layer.weight.dtype for layer in cast] == [torch.bfloat16, torch.float]
    assert [layer.weight.dtype for layer in layers] == [torch.float, torch.float]


def test_autocast_casts_the_frozen_layers_once():
    step, adapted = readable_step()
    step.class_layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
                                      nn.Conv2d(8, 8, 3, padding=1)).requires_grad_(False)
    adapted = [feature.detach().bfloat16().requires_grad_() for feature in adapted]
    part = ClassSpaceKnowledge(class_space_pair())
    expected = ClassSpaceKnowledge(class_space_pair())
    expected.class_layers = lambda step, adapted: step.class_layers
    casts = []
    for knowledge in (expected, part, part):
        with torch.autocast('cpu', dtype=torch.bfloat16), Operations() as forward:
            loss = knowledge(step, adapted, decay=1.0)['loss_global']
        gradients = torch.autograd.grad(loss, adapted)
        casts.append(forward.counts['aten::_to_copy'])
        if knowledge is expected:
            right = loss, gradients
        assert torch.equal(loss, right[0])
        assert all(map(torch.equal, gradients, right[1]))
    # Two weights and biases on each level; the first step of the others makes the copy.
    assert casts[0] - casts[2] == 4 * len(adapted) and casts[1] - casts[2] == 4
    assert step.class_layers[0].weight.dtype == torch.float32
    assert not part.state_dict()


def test_other_layers_and_another_precision_are_cast_anew():
    """As after a move of the teacher, or where half precision changes its kind."""
    step, adapted = readable_step()
    part = ClassSpaceKnowledge(class_space_pair())
    seen = []
    for scale, dtype in ((1, torch.bfloat16), (2, torch.bfloat16), (2, torch.float16)):
        step.class_layers = nn.Sequential(nn.Conv2d(8, 8, 1))
        nn.init.constant_(step.class_layers[0].weight, scale)
        [layer] = part.class_layers(step, [feature.to(dtype) for feature in adapted])
        seen.append((layer.weight.dtype, layer.weight.unique().item()))
    assert seen == [(torch.bfloat16, 1), (torch.bfloat16, 2), (torch.float16, 2)]


def test_scores_are_the_heads_own_maps():
    """No copy of them in another order is made, which is large for many classes."""
    model = build_distiller(small.retinanet(24), small.retinanet(), knowledge=[IN_CLASS_SPACE])
    with recorded(model.student.bbox_head, 'forward') as student, \
            recorded(model.teacher.bbox_head, 'forward') as teacher:
        _, step = model.observe(to_batch(**small.batch()))
    for part, calls in ((step.student, student), (step.teacher, teacher)):
        assert part.dense is None
        assert all(one is other for one, other in zip(part.score_maps, calls[-1].result[0]))
        assert len(part.score_maps) == len(part.maps)


def test_weight_and_decay_are_factors_of_the_loss():
    step, adapted = readable_step()
    losses = [ClassSpaceKnowledge(class_space_pair(), loss_weight=weight)(
        step, adapted, decay)['loss_global'] for weight, decay in ((3.0, 1.0), (6.0, 0.25))]
    torch.testing.assert_close(losses[1], losses[0] / 2)


# --- The prototypes ------------------------------------------------------------------------------

def test_an_instance_is_read_where_the_head_is_most_confident():
    """Of all cells of its box, on all levels; what lies outside is of others."""
    sizes = [(4, 4), (2, 2), (1, 1)]
    maps = [100 * level + torch.arange(1.0 * h * w).reshape(1, 1, h, w)
            for level, (h, w) in enumerate(sizes)]
    scores = torch.full((1, 1, 4, 4), -9.0), torch.full((1, 2, 2, 2), -9.0), \
        torch.full((1, 1, 1, 1), -7.5)
    scores[0][0, 0, 0, 1] = -6  # in the first box, on the fine level
    scores[1][0, 1, 1, 1] = -7  # in the second, on the middle level, by the other anchor
    scores[0][0, 0, 0, 3] = 9  # in neither
    boxes = [torch.tensor([[0.0, 0.0, 15.0, 15.0], [16.0, 16.0, 31.0, 31.0]])]
    scores = [cell_confidence((level,), num_logits=1, sigmoid=True) for level in scores]
    found = class_features(maps, scores, [(1 / stride,) * 2 for stride in (8, 16, 32)], boxes,
                           nn.Identity())
    assert found.flatten().tolist() == [1.0, 103.0]


def test_an_instance_is_not_read_where_the_head_is_confident_of_the_background():
    detector = small.retinanet(24)
    detector['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=False)
    teacher = build_distiller(detector, small.retinanet(), knowledge=[dict(type='PKD')]).teacher
    head, layers = teacher.bbox_head, class_layers(teacher.bbox_head)

    def scores(maps):
        """One anchor of a cell is an object at the first cell, all else background elsewhere."""
        found = []
        for level in maps:
            logits = level.new_zeros(len(level), head.num_base_priors, 4, *level.shape[-2:])
            logits[:, :, 3] = 9
            logits[:, 0, 1, 0, 0], logits[:, :, 3, 0, 0] = 5, 0
            found.append(logits.flatten(1, 2))
        return found, found

    maps = teacher.extract_feat(small.batch()['img'])
    head.forward = scores
    [*_, read] = instance_features(teacher, [2], small.batch()['img'],
                                   [torch.tensor([[0.0, 0.0, 127.0, 127.0]])] * 2,
                                   class_layers=layers)
    torch.testing.assert_close(read, layers(maps[2])[:, :, 0, 0])


@pytest.mark.parametrize('detector', [small.retinanet, small.fcos])
def test_class_layers_lead_to_the_heads_own_scores(detector):
    model = build_distiller(detector(24), detector(), knowledge=[IN_CLASS_SPACE])
    head, layers = model.teacher.bbox_head, model.frozen.class_layers
    score = head.retina_cls if detector is small.retinanet else head.conv_cls
    maps = model.teacher.extract_feat(small.batch()['img'])
    for feature, scores in zip(maps, head(maps)[0]):
        assert torch.equal(score(layers(feature)), scores)


@pytest.mark.parametrize('detector', [small.retinanet, small.fcos])
def test_the_teachers_head_reads_classes_once(detector):
    model = build_distiller(detector(24), detector(), knowledge=[IN_CLASS_SPACE])
    with recorded(model.teacher.bbox_head.cls_convs[0], 'forward') as calls:
        _, step = model.observe(to_batch(**small.batch()))
    assert len(calls) == len(step.teacher.maps) == len(step.teacher.class_maps)
    for feature, read in zip(step.teacher.maps, step.teacher.class_maps):
        torch.testing.assert_close(read, step.class_layers(feature))


def test_classes_are_read_on_the_levels_that_both_have():
    student = small.retinanet()
    student['neck'] = small.neck(16, start_level=2)
    student['bbox_head']['anchor_generator']['strides'] = [16, 32, 64, 128, 256]
    model = build_distiller(small.retinanet(24), student, knowledge=[IN_CLASS_SPACE])
    _, step = model.observe(to_batch(**small.batch()))
    assert [read.shape[-1] for read in step.teacher.class_maps] == [8, 4, 2, 1]
    for feature, read in zip(step.teacher.maps, step.teacher.class_maps):
        torch.testing.assert_close(read, step.class_layers(feature))


def test_a_basis_is_arranged_once_per_bank():
    model = build()
    part = model.knowledge[0].global_knowledge
    first = part.directions(model.bank)
    assert part.directions(model.bank) is first
    other = model.bank.to('cpu')
    other.class_features = [2 * rows for rows in other.class_features]
    torch.testing.assert_close(part.directions(other), first / 2)


def test_generation_reads_the_chosen_instances():
    model = build_distiller(small.retinanet(24), small.retinanet(), knowledge=[IN_CLASS_SPACE])
    data = small.batch()
    levels = model.pair.levels(model.pair.teacher)
    usual = instance_features(model.teacher, levels, data['img'], data['gt_bboxes'])
    features = instance_features(model.teacher, levels, data['img'], data['gt_bboxes'],
                                 class_layers=model.frozen.class_layers)
    assert all(map(torch.equal, usual, features)) and len(features) == len(usual) + 1
    assert features[-1].shape == (4, model.teacher.bbox_head.feat_channels)


def test_a_bank_keeps_them(tmp_path):
    bank = PrototypeBank(student=[random(2, 3)], teacher=[random(2, 4)],
                         offsets=[torch.tensor([0, 2])], class_features=[random(2, 5)])
    bank.save(tmp_path / 'bank.safetensors')
    loaded = PrototypeBank.load(tmp_path / 'bank.safetensors')
    assert torch.equal(loaded.class_features[0], bank.class_features[0])
    assert PrototypeBank(bank.student, bank.teacher, bank.offsets).class_features == []
    with pytest.raises(ValueError, match='class_features must hold a row for every prototype'):
        PrototypeBank(bank.student, bank.teacher, bank.offsets, class_features=[random(1, 5)])


# --- In a distiller ------------------------------------------------------------------------------

def build(**settings):
    model = build_distiller(small.retinanet(24), small.retinanet(),
                            knowledge=[dict(IN_CLASS_SPACE, **settings)])
    nn.init.kaiming_normal_(model.teacher.bbox_head.retina_cls.weight)
    model.bank.class_features = [random(len(rows), 24).float() for rows in model.bank.teacher]
    return model


@pytest.mark.parametrize('settings, trained', [
    (dict(), 'local_knowledge.adaptation'),
    (dict(local_knowledge=None, soft_label=None), 'adaptation')])
def test_it_teaches_the_student_and_the_adaptation(settings, trained):
    model = build(**settings)
    losses_of(model, small.batch())['loss_global'].backward()
    gradients = {name: parameter.grad is not None and bool(parameter.grad.any())
                 for name, parameter in model.named_parameters()}
    assert gradients['student.neck.fpn_convs.0.conv.weight']
    assert gradients[f'knowledge.0.{trained}.0.weight']
    assert not gradients['student.bbox_head.cls_convs.0.conv.weight']
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is None for parameter in model.frozen.class_layers.parameters())


@fake_gpu
def test_it_does_not_wait_for_the_device():
    model = build()
    _, step = model.observe(to_batch(**small.batch()))
    step.class_layers = None
    with FakeTensorMode() as fake, torch.device('cuda'):
        module = RobustDistillingModule(model.pair, global_knowledge=dict(space='classes'))
        step = to_fake(step, fake, 'cuda')
        step.class_layers = nn.Conv2d(24, 24, 3, padding=1)
        with StayOnDevice():
            loss = module(step)['loss_global']
    assert loss.device.type == 'cuda' and loss.dim() == 0


def test_other_losses_stay_as_they_are():
    data = small.batch()
    ours, usual = losses_of(build(), data), losses_of(build(global_knowledge={}), data)
    assert ours.keys() == usual.keys()
    for name in ('loss_local_fg', 'loss_local_bg', 'loss_soft'):
        assert torch.equal(ours[name], usual[name])
    assert not torch.equal(ours['loss_global'], usual['loss_global'])


def test_a_teacher_that_is_moved_takes_its_class_layers_along():
    model = build()
    weight = class_layers(model.teacher.bbox_head)[0].conv.weight
    with torch.no_grad():
        weight.fill_(1.0)
    model.double()
    copied = model.frozen.class_layers[0].conv.weight
    assert copied.dtype == torch.float64 and (copied == 1).all() and copied is not weight


@pytest.mark.parametrize('teacher, student, settings, says', [
    (info(), info(), {}, 'global_knowledge.space = "classes": teacher RetinaNet has no layers'),
    (able(), info(predicts_densely=False, classifies_boxes=False), {},
     'student RetinaNet does not predict'),
    (able(), info('two-stage'), {}, 'one-stage teacher .* and a two-stage student .* predict'),
    (able(), info(), dict(temperature=0), 'temperature = 0: must be positive'),
    (able(), info(), dict(num_cells=0), 'num_cells = 0: must be a whole number from 1'),
    (able(), info(), dict(weight=3), r"unknown settings \['weight'\]"),
    (able(), info(), dict(space='boxes'), 'space = \'boxes\': must be "maps" or "classes"')])
def test_what_cannot_be_is_said(teacher, student, settings, says):
    settings = dict(dict(space='classes'), **settings)
    with pytest.raises(ConfigError, match=says):
        RobustDistillingModule(pair_of(teacher, student), global_knowledge=settings,
                               soft_label=None)


def test_it_says_where_it_teaches():
    said = build(soft_label=None).knowledge[0].describe()
    assert said == ('local knowledge at the positives that the student trains on; '
                    'global knowledge at the cells where either detector is most confident of a '
                    'class')


def test_prototypes_of_another_space_are_refused():
    model = build()
    model.bank.class_features = []
    with pytest.raises(ConfigError, match='the prototypes were generated without it'):
        losses_of(model, small.batch())


@half_on_cpu
def test_class_layers_stay_in_full_precision():
    model = build()
    model.frozen.precision = 'half'
    model.frozen.apply(lambda tensor: tensor)
    assert next(model.teacher.parameters()).dtype == torch.float16
    assert next(model.frozen.class_layers.parameters()).dtype == torch.float32
