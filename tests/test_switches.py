"""Switches of the robust distilling module: decay, a later start, a quiet start, levels."""

from types import SimpleNamespace

import pytest
import torch
from helpers import small_detectors as small
from helpers.synthetic_steps import info, pair, pair_of, synthetic_step

from gkd.detectors.step import Stage
from gkd.errors import ConfigError
from gkd.knowledge import RobustDistillingModule, map_levels
from gkd.knowledge.global_knowledge import GlobalKnowledge
from gkd.knowledge.instances import Instances
from gkd.knowledge.local_knowledge import LocalKnowledge
from gkd.knowledge.soft_label import SoftLabel

DECAYING = {'loss_global', 'loss_local_fg', 'loss_local_bg'}


def losses_of(progress, **settings):
    """Losses of one step at a part of the training, of a module that is always the same."""
    detectors = pair()
    torch.manual_seed(0)
    module = RobustDistillingModule(detectors, **settings)
    step = synthetic_step(bank=small.random_bank(detectors), progress=progress)
    return module(step), module, step


def test_decay_can_be_off():
    first, later = losses_of(0.0)[0], losses_of(0.75)[0]
    constant = losses_of(0.75, decay=False)[0]
    for name, loss in first.items():
        torch.testing.assert_close(constant[name], loss)
        torch.testing.assert_close(later[name], loss * (0.25 if name in DECAYING else 1))


def test_weights_are_factors_of_their_terms():
    usual = losses_of(0.0)[0]
    weighted = losses_of(0.0, global_knowledge=dict(loss_weight=15),
                         local_knowledge=dict(foreground_weight=2, background_weight=2),
                         soft_label=dict(loss_weight=4))[0]
    factors = dict(loss_global=3, loss_local_fg=2, loss_local_bg=0.5, loss_soft=4)
    for name, factor in factors.items():
        torch.testing.assert_close(weighted[name], factor * usual[name])


def test_ground_truth_is_taught_as_positives_are():
    detectors = pair()
    step = synthetic_step(bank=small.random_bank(detectors))
    step.boxes, step.labels = step.gt_boxes, torch.cat(step.gt_labels)
    module = RobustDistillingModule(detectors, soft_label=None)
    as_positives = module(step)
    module.instances = 'gt'
    assert module(step) == as_positives


@pytest.mark.parametrize('family', ['one-stage', 'two-stage'])
def test_soft_labels_are_of_the_positives_whatever_boxes_are_taught(family):
    detectors = pair(family)
    step = synthetic_step(family, bank=small.random_bank(detectors))
    ours, usual = (RobustDistillingModule(detectors, instances=instances)(step)
                   for instances in ('gt', 'positives'))
    assert torch.equal(ours['loss_soft'], usual['loss_soft'])
    assert not torch.equal(ours['loss_global'], usual['loss_global'])


def test_pooled_features_of_positives_are_weighed_and_not_taught():
    """A gradient of 0 would be sent back through the student's RoI pooling all the same."""
    detectors = pair('two-stage')
    step = synthetic_step('two-stage', bank=small.random_bank(detectors))
    sum(RobustDistillingModule(detectors)(step).values()).backward()
    assert step.student.roi_features.grad is None


def test_trust_is_that_of_the_features_that_are_taught():
    """Of the maps in global and local knowledge, of the RoI-pooled ones in soft labels."""
    detectors = pair('two-stage')
    step = synthetic_step('two-stage', bank=small.random_bank(detectors))
    torch.manual_seed(0)
    module = RobustDistillingModule(detectors)
    before = module(step)
    step.teacher.roi_features = -step.teacher.roi_features
    changed = {name for name, loss in module(step).items() if loss != before[name]}
    assert changed == {'loss_soft'}


def test_positives_are_trusted_on_the_level_that_they_were_pooled_from():
    detectors = pair('two-stage')
    step = synthetic_step('two-stage', bank=small.random_bank(detectors))
    module = RobustDistillingModule(detectors)
    _, trusted = module.weigh(step, module.compare(step, Instances.of(step.boxes)), step.labels)
    found = []
    for level, weights in enumerate(trusted):
        step.roi_levels = torch.full_like(step.roi_levels, level)
        found.append(module(step)['loss_soft'].item())
        taught = module.soft_label(step.student.logits, step.teacher.logits, weights)
        assert found[-1] == pytest.approx(taught['loss_soft'].item())
    assert len(set(found)) == len(step.strides)


def test_new_prototypes_take_the_place_of_the_old_ones():
    detectors = pair()
    old, new = (synthetic_step(bank=small.random_bank(detectors, seed=seed)) for seed in (0, 1))
    module = RobustDistillingModule(detectors, local_knowledge=None)
    before = module(old)
    assert module(new) == RobustDistillingModule(detectors, local_knowledge=None)(new) != before


def test_global_knowledge_asks_for_prototypes_with_equal_weights_too():
    assert RobustDistillingModule(pair(), robust=False).needs.bank
    assert not RobustDistillingModule(pair(), robust=False, global_knowledge=None).needs.bank


def test_nothing_is_taught_before_the_start():
    losses, module, step = losses_of(0.4, start=0.5)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    # Distributed training hangs where a parameter has no gradient in some step.
    assert all(parameter.grad is not None and not parameter.grad.any()
               for parameter in module.parameters())
    assert not any(feature.grad.any() for feature in step.student.maps)
    for (name, loss), usual in zip(losses_of(0.5, start=0.5)[0].items(),
                                   losses_of(0.5)[0].values()):
        torch.testing.assert_close(loss, usual, msg=name)


@pytest.mark.parametrize('start', [-0.1, 1.0, 12])
def test_start_is_a_share(start):
    with pytest.raises(ConfigError, match='start = .*: must be at least 0 and below 1'):
        RobustDistillingModule(pair(), start=start)


def test_adaptation_layers_may_start_quietly():
    _, usual, _ = losses_of(0.0)
    _, quiet, _ = losses_of(0.0, local_knowledge=dict(quiet_start=True))
    for layer in quiet.local_knowledge.adaptation:
        assert layer.weight.std().item() == pytest.approx(1e-4, rel=0.2)
    assert all(layer.weight.std() > 1e-2 for layer in usual.local_knowledge.adaptation)
    assert usual.state_dict().keys() == quiet.state_dict().keys()


@pytest.mark.parametrize('levels', ['all', 'own'])
def test_global_knowledge_reaches_the_levels_that_it_should(levels):
    losses, _, step = losses_of(0.0, global_knowledge=dict(levels=levels), local_knowledge=None,
                                soft_label=None)
    losses['loss_global'].backward()
    reached = {level for level, feature in enumerate(step.student.maps) if feature.grad.any()}
    own = set(map_levels(torch.cat(step.boxes), len(step.strides)).tolist())
    assert own < set(range(len(step.strides)))
    assert reached == (own if levels == 'own' else set(range(len(step.strides))))


def test_levels_are_all_or_own():
    with pytest.raises(ConfigError, match="global_knowledge.levels = 'p3': must be"):
        RobustDistillingModule(pair(), global_knowledge=dict(levels='p3'))


def test_local_knowledge_teaches_the_levels_that_it_is_given():
    """The others' adaptation layers keep a gradient, of 0: distributed training waits for it."""
    losses, module, step = losses_of(0.0, global_knowledge=None, soft_label=None, robust=False,
                                     local_knowledge=dict(levels=[1], level_reduction='mean'))
    sum(losses.values()).backward()
    reached = [level for level, feature in enumerate(step.student.maps) if feature.grad.any()]
    assert reached == [1]
    for level, layer in enumerate(module.local_knowledge.adaptation):
        assert layer.weight.grad is not None and layer.weight.grad.any() == (level == 1)


def test_the_sum_over_levels_is_that_of_each_alone():
    def local(levels, reduction):
        losses, _, _ = losses_of(0.0, local_knowledge=dict(levels=levels,
                                                           level_reduction=reduction))
        return torch.stack([losses['loss_local_fg'], losses['loss_local_bg']])

    count = len(synthetic_step(bank=None).strides)
    alone = sum(local([level], 'mean') for level in range(count))
    torch.testing.assert_close(local(None, 'sum'), alone)
    torch.testing.assert_close(local(None, 'mean'), alone / count)


@pytest.mark.parametrize('student, reduction', [('one-stage', 'sum'), ('two-stage', 'mean')])
@pytest.mark.parametrize('teacher', ['one-stage', 'two-stage'])
def test_the_students_family_says_how_levels_are_reduced(teacher, student, reduction):
    detectors = pair_of(info(teacher), info(student))
    usual, named = LocalKnowledge(detectors), LocalKnowledge(detectors, level_reduction=reduction)
    assert usual.weights == named.weights
    with pytest.raises(ConfigError, match="level_reduction = 'max': must be"):
        LocalKnowledge(detectors, level_reduction='max')


def test_global_knowledge_is_the_sum_over_levels_of_the_instances_alone():
    """Levels lie in one tensor or in several; what follows the instances is only weighted."""
    student, teacher = torch.rand(2, 3, 4, 5)  # of three levels, two instances and two more
    weights, own = torch.rand(3, 2), torch.tensor([0, 1])
    knowledge = GlobalKnowledge()

    def taught(compared, weights):
        return knowledge(compared, weights, own, 1.0)['loss_global']

    alone = sum(taught([(student[level:level + 1, :2], teacher[level:level + 1, :2])],
                       weights[level:level + 1]) for level in range(3))
    torch.testing.assert_close(taught([(student, teacher)], weights), alone)
    torch.testing.assert_close(
        taught([(student[:2], teacher[:2]), (student[2:], teacher[2:])], weights), alone)


def test_local_knowledge_of_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r'local_knowledge.levels = \[7\]: must name some of'):
        RobustDistillingModule(pair(), local_knowledge=dict(levels=[7]))


def test_soft_labels_of_a_single_class_teach():
    """A softmax over one class would be silent."""
    one = info(num_classes=1)
    logits = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    assert SoftLabel(pair_of(one, one))(*logits, torch.ones(1))['loss_soft'] > 0
    assert SoftLabel(pair_of(one, one), activation='softmax')(
        *logits, torch.ones(1))['loss_soft'] == 0


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_soft_labels_are_as_soft_as_they_are_set(activation):
    """At three times the temperature, three times the logits are as soft, and count 9 times."""
    logits = torch.randn(2, 4, 3)
    usual, softer = (SoftLabel(pair(), temperature=temperature, activation=activation)(
        *(temperature * logits), torch.ones(4))['loss_soft'] for temperature in (1.0, 3.0))
    torch.testing.assert_close(softer, 9 * usual)


@pytest.mark.parametrize('classes, sigmoid, activation', [
    (1, True, 'sigmoid'), (1, False, 'softmax'), (3, True, 'softmax'), (3, False, 'softmax')])
def test_soft_labels_are_softened_by_2_and_over_all_classes_that_there_are(
        classes, sigmoid, activation):
    """A softmax head has a logit of the background, so that one class is not alone."""
    detectors = pair_of(*[info(num_classes=classes, sigmoid=sigmoid)] * 2)
    logits = torch.randn(2, 4, classes if sigmoid else classes + 1)
    usual, named = (SoftLabel(detectors, **settings)(*logits, torch.ones(4)) for settings in (
        {}, dict(temperature=2.0, activation=activation)))
    assert usual == named and usual['loss_soft'] > 0


def test_a_later_stage_is_weighed_at_its_own_boxes():
    seen, stage = [], Stage(boxes=[torch.ones(2, 4)], labels=torch.zeros(2), loss_weight=0.5)
    part = SimpleNamespace(
        weigh_boxes=lambda step, *instances: seen.append(instances) or 'weights',
        soft_label=lambda *given: seen.append(given) or dict(loss_soft=4.0))
    step = SimpleNamespace(stages=[stage], student=SimpleNamespace(stage_logits=['student']),
                           teacher=SimpleNamespace(stage_logits=['teacher']))
    losses = dict(loss_soft=1.0)
    RobustDistillingModule.teach_stages(part, step, losses)
    assert losses == dict(loss_soft=3.0)
    assert seen == [(stage.boxes, stage.labels), ('student', 'teacher', 'weights')]
