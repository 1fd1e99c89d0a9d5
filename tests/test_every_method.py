"""What holds for every kind of knowledge, on real detectors."""

import copy
import dataclasses

import pytest
import torch
from helpers import small_detectors as small
from helpers import synthetic_steps as steps
from helpers.devices import StayOnDevice, fake_gpu, to_fake
from helpers.distillers import build_distiller, losses_of, total
from torch._subclasses import FakeTensorMode

from gkd.detectors import DetectorPair
from gkd.frameworks import to_batch
from gkd.registry import KNOWLEDGE

# All that the package registers: a new method is tested without a word here.
METHODS = sorted(name for name, kind in KNOWLEDGE.module_dict.items()
                 if kind.__module__.startswith('gkd.'))
every_method = pytest.mark.parametrize('method', METHODS)
both_families = pytest.mark.parametrize('family', small.FAMILIES)


def build(method, family, teacher_channels=24):
    """A distiller that teaches by one method."""
    detector = small.FAMILIES[family]
    model = build_distiller(detector(teacher_channels), detector(),
                            knowledge=[dict(type=method)])
    for name, parameter in model.teacher.named_parameters():
        if 'cls' in name and parameter.dim() > 1:  # an untrained head scores everything alike
            torch.nn.init.kaiming_normal_(parameter)
    return model


def own_losses(model, data):
    """What the kind of knowledge adds to the detection losses."""
    losses = losses_of(model, data)
    alone = model.student.forward_train(**copy.deepcopy(data))
    return {name: value for name, value in losses.items() if name not in alone}


def test_all_ten_are_registered():
    assert {'RobustDistillingModule', 'CWD', 'DeFeat', 'FBKD', 'FGD', 'FGFI', 'GID', 'MGD', 'PFI',
            'PKD'} <= set(METHODS)


@pytest.mark.parametrize('method, one_stage, two_stage', [
    ('CWD', 4, 4), ('FGD', 5, 4), ('MGD', 5, 4), ('PKD', 4, 4), ('RKD', 5, 5)])
def test_levels_are_by_default_the_authors(method, one_stage, two_stage):
    strides = (8, 16, 32, 64, 128)
    for family, count in (('one-stage', one_stage), ('two-stage', two_stage)):
        detector = dataclasses.replace(steps.info(family), channels=(8,) * 5, strides=strides)
        pair = DetectorPair(detector, detector, strides)
        assert KNOWLEDGE.build(dict(type=method, pair=pair)).levels == tuple(range(count))


@both_families
@every_method
def test_every_loss_reaches_the_student_and_none_the_teacher(method, family):
    """Even where the teacher's features would take a gradient."""
    family = family.replace('_', '-')
    pair = steps.pair(family, teacher_channels=12)
    step = steps.synthetic_step(family, teacher_channels=12, bank=small.random_bank(pair))
    taught, others = steps.leaves(step.student), steps.leaves(step.teacher)
    for tensor in others:
        tensor.requires_grad_()
    losses = KNOWLEDGE.build(dict(type=method, pair=pair))(step)
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, taught + others, retain_graph=True,
                                        allow_unused=True)
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert any(reached[:len(taught)]), name
        assert gradients[len(taught):] == (None,) * len(others), name


@both_families
@every_method
def test_it_teaches_the_student_and_its_own_layers_and_nothing_else(method, family):
    model = build(method, family)
    losses = own_losses(model, small.batch())
    assert losses
    assert all(name.startswith('loss') and loss.dim() == 0 and loss.isfinite()
               for name, loss in losses.items())
    taught = sum(losses.values())
    assert taught > 0
    taught.backward()
    # Distributed training hangs where a parameter has no gradient in some step.
    for name, parameter in model.knowledge.named_parameters():
        assert parameter.grad is not None, name
    reached = [parameter.grad is not None and bool(parameter.grad.any())
               for parameter in model.student.backbone.layer4.parameters()]
    assert any(reached)
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


@both_families
@every_method
def test_one_step_learns(method, family):
    """A small step against the gradient makes the loss smaller."""
    model = build(method, family)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)

    def taught():
        return sum(own_losses(model, small.batch()).values())

    before = taught()
    before.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in parameters
                        if parameter.grad is not None]).norm()
    optimizer.param_groups[0]['lr'] = float(1e-3 * before.detach() / norm ** 2)
    optimizer.step()
    assert taught() < before


@both_families
@every_method
def test_images_without_objects(method, family):
    model = build(method, family)
    losses = own_losses(model, small.batch(boxes=()))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.knowledge.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@both_families
@every_method
def test_odd_batches(method, family):
    """An image without objects beside another, boxes over the border and beyond, one image."""
    model = build(method, family)
    half = small.batch()
    for name in ('gt_bboxes', 'gt_labels'):
        half[name][1] = half[name][1][:0]
    for data in (half, small.batch(num_images=1), small.batch(boxes=(
            (-40, -30, 20, 25), (100, 90, 190, 160), (200, 200, 260, 250)))):
        model.zero_grad()
        losses = losses_of(model, data)
        total(losses).backward()
        gradients = [parameter.grad for parameter in model.parameters()
                     if parameter.grad is not None]
        assert total(losses).isfinite() and all(part.isfinite().all() for part in gradients)


@fake_gpu
@both_families
@every_method
def test_it_does_not_wait_for_the_device(method, family):
    model = build(method, family)
    model.progress = 0.25
    _, step = model.observe(to_batch(**small.batch()))
    with FakeTensorMode() as fake, torch.device('cuda'):
        kind = KNOWLEDGE.build(dict(type=method, pair=model.pair))
        step = to_fake(step, fake, 'cuda')
        with StayOnDevice():
            losses = kind(step)
    assert {(loss.device.type, loss.dim()) for loss in losses.values()} == {('cuda', 0)}


@both_families
@every_method
def test_its_losses_are_in_full_precision_under_autocast(method, family):
    model = build(method, family)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = own_losses(model, small.batch())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters()
               if parameter.grad is not None)


@every_method
def test_it_goes_together_with_global_knowledge(method):
    if method == 'RobustDistillingModule':
        pytest.skip('is global knowledge')
    model = build_distiller(small.retinanet(24), small.retinanet(), knowledge=[
        dict(type='RobustDistillingModule'), dict(type=method)])
    losses = losses_of(model, small.batch())
    single = own_losses(build(method, 'one_stage'), small.batch())
    assert single.keys() <= losses.keys() and 'loss_global' in losses
    total(losses).backward()
