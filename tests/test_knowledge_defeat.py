"""DeFeat against loops over images, objects, cells, channels and proposals."""

import math

import pytest
import torch
from helpers import synthetic_steps as steps
from torch import nn

from gkd.detectors import DetectorPair, Needs
from gkd.errors import ConfigError
from gkd.knowledge.methods.defeat import DeFeat, proposal_divergence

NECK = {'loss_defeat_object', 'loss_defeat_background'}
PROPOSALS = {'loss_defeat_positive', 'loss_defeat_negative'}
# An object for every level, of 22, 180 and 400 pixels, the latter two beyond the image; a narrow
# one.
BOXES = [torch.tensor([[3.0, 5.0, 25.0, 27.0], [20.0, -90.0, 200.0, 90.0],
                       [40.0, 8.0, 47.0, 60.0]]),
         torch.tensor([[24.0, 33.0, 424.0, 433.0]])]
LABELS = [torch.tensor([0, 2, 1]), torch.tensor([1])]


def covered(box, level, image):
    """The cells of an object on a level: none on a level that is not its own."""
    x1, y1, x2, y2 = box
    side = math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1))
    if min(max(math.floor(math.log2(side / 56)), 0), 2) != level:
        return set()
    stride, cells = steps.STRIDES[level], steps.IMAGE_SIZE // steps.STRIDES[level]
    left, top = (max(int(start / stride), 0) for start in (x1, y1))
    right, bottom = (min(int(end / stride), cells) for end in (x2, y2))
    if left == right or top == bottom:  # a narrow object has one cell
        right, bottom = left + 1, top + 1
    return {(image, y, x) for y in range(top, bottom) for x in range(left, right)}


def maps_by_loop(adapted, teacher, boxes):
    objects, background = [], []
    for level, (own, target) in enumerate(zip(adapted, teacher)):
        inside = set().union(*(covered(box, level, image) for image, image_boxes in
                               enumerate(boxes) for box in image_boxes.tolist()))
        sums, numbers = [0.0, 0.0], [0, 0]
        images, channels, height, width = own.shape
        for image in range(images):
            for y in range(height):
                for x in range(width):
                    part = (image, y, x) not in inside
                    for channel in range(channels):
                        difference = own[image, channel, y, x] - target[image, channel, y, x]
                        sums[part] = sums[part] + difference ** 2
                        numbers[part] += 1
        objects.append(sums[0] / max(1, 2 * numbers[0]))
        background.append(sums[1] / max(1, 2 * numbers[1]))
    return sum(objects) / 3, sum(background) / 3


def divergence_by_loop(student, teacher, rows, temperature):
    total = 0.0
    for row in rows:
        own, target = ([math.exp(logit / temperature) for logit in logits[row].tolist()]
                       for logits in (student, teacher))
        for p, q in zip(target, own):
            p, q = p / sum(target), q / sum(own)
            total += p * math.log(p / q)
    return temperature ** 2 * total / len(rows)


def build(*args, **settings):
    """DeFeat in float64, with an adaptation of ordinary size."""
    torch.manual_seed(0)
    defeat = DeFeat(steps.pair(*args), **settings).double()
    for layer in defeat.adaptation:
        nn.init.normal_(layer.weight, std=0.1)
    return defeat


def synthetic_step(*args, boxes=BOXES, labels=LABELS):
    return steps.synthetic_step(*args, boxes=boxes, labels=labels, dtype=torch.float64)


def close(value, expected):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype))


@pytest.mark.parametrize('family', ['one-stage', 'two-stage'])
def test_maps_are_the_formula(family):
    step = synthetic_step(family, 6, 4)
    student, teacher = step.student, step.teacher
    defeat = build(family, 6, 4, object_weight=0.7, background_weight=1.9)
    losses = defeat(step)
    assert losses.keys() == (NECK if family == 'one-stage' else NECK | PROPOSALS)
    adapted = [adapt(own) for adapt, own in zip(defeat.adaptation, student.maps)]
    objects, background = maps_by_loop(adapted, teacher.maps, BOXES)
    # The mask is in float32, the rest in float64.
    close(losses['loss_defeat_object'], 0.7 * objects)
    close(losses['loss_defeat_background'], 1.9 * background)


def test_the_objects_of_these_tests_lie_on_all_levels():
    found = [[len(covered(box, level, 0)) for level in range(3)]
             for boxes in BOXES for box in boxes.tolist()]
    assert [row.index(max(row)) for row in found] == [0, 1, 0, 2] and found[2][0] == 1


def test_classification_is_the_formula():
    step = synthetic_step('two-stage')
    student, teacher = step.student, step.teacher
    defeat = build('two-stage', positive_weight=0.7, negative_weight=1.3,
                   positive_temperature=3.0, negative_temperature=0.5)
    # Positives do not come first: an image's proposals are followed by the next one's.
    positives = torch.arange(len(step.proposal_positives)) % 3 == 1
    step.proposal_positives = positives
    losses = defeat(step)
    rows = range(len(positives))
    logits = student.proposal_logits, teacher.proposal_logits
    close(losses['loss_defeat_positive'],
          0.7 * divergence_by_loop(*logits, [row for row in rows if row % 3 == 1], 3.0))
    close(losses['loss_defeat_negative'],
          1.3 * divergence_by_loop(*logits, [row for row in rows if row % 3 != 1], 0.5))


def test_defaults_are_the_authors():
    defeat = DeFeat(steps.pair('two-stage'))
    assert (defeat.object_weight, defeat.background_weight) == (3, 12)
    assert (defeat.positive_weight, defeat.negative_weight) == (2, 2)
    assert (defeat.positive_temperature, defeat.negative_temperature) == (1, 1)
    assert defeat.needs == Needs(proposals=True)
    assert DeFeat(steps.pair()).needs == Needs()
    assert DeFeat(steps.pair('two-stage'), classification=False).needs == Needs()
    for layer in defeat.adaptation:
        assert layer.kernel_size == (3, 3) and 0.8e-4 < layer.weight.std() < 1.2e-4


def test_gradient():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    chosen = torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(
        lambda logits: proposal_divergence(logits, teacher, chosen, 1.5), student.requires_grad_())

    step = synthetic_step('two-stage')
    student, teacher = step.student, step.teacher
    defeat = build('two-stage')
    loss = sum(defeat(step).values())
    loss.backward()
    with torch.no_grad():
        for own in (*student.maps, student.proposal_logits):
            direction, length = torch.randn_like(own), 1e-5
            own += length * direction
            moved = sum(defeat(step).values())
            own -= 2 * length * direction
            back = sum(defeat(step).values())
            own += length * direction
            close((moved - back) / (2 * length), (own.grad * direction).sum())


@pytest.mark.parametrize('loss', sorted(NECK | PROPOSALS))
def test_student_and_adaptation_learn_and_the_teacher_does_not(loss):
    step = synthetic_step('two-stage')
    student, teacher = step.student, step.teacher
    for leaf in steps.leaves(teacher):
        leaf.requires_grad_()
    defeat = build('two-stage')
    defeat(step)[loss].backward()
    assert all(leaf.grad is None for leaf in steps.leaves(teacher))
    learning = ([*student.maps, *defeat.parameters()] if loss in NECK
                else [student.proposal_logits])
    assert all(tensor.grad.abs().sum() > 0 for tensor in learning)
    if loss in PROPOSALS:
        touched = student.proposal_logits.grad.abs().sum(dim=1) > 0
        assert torch.equal(touched, step.proposal_positives ^ (loss == 'loss_defeat_negative'))


def test_is_0_for_a_student_like_the_teacher():
    step = synthetic_step('two-stage')
    student, teacher = step.student, step.teacher
    defeat = build('two-stage')
    for layer in defeat.adaptation:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    student.maps, student.proposal_logits = teacher.maps, teacher.proposal_logits
    losses = defeat(step)
    assert all(loss.abs() < 1e-15 for loss in losses.values()) and len(losses) == 4


def test_images_without_objects():
    nothing, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    step = synthetic_step('two-stage', boxes=[nothing] * 2, labels=[no_labels] * 2)
    student = step.student
    defeat = build('two-stage')
    losses = defeat(step)
    assert losses['loss_defeat_object'].item() == losses['loss_defeat_positive'].item() == 0
    assert losses['loss_defeat_background'] > 0 and losses['loss_defeat_negative'] > 0
    (losses['loss_defeat_object'] + losses['loss_defeat_positive']).backward()
    for tensor in (*student.maps, student.proposal_logits, *defeat.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_no_proposals():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = proposal_divergence(logits, torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool), 2.0)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


REFUSED = {
    'student RetinaNet is one-stage': (steps.info('two-stage'), steps.info()),
    'teacher RetinaNet is one-stage': (steps.info(), steps.info('two-stage')),
    'teacher Cascade gives no class logits': (
        steps.info('two-stage', name='Cascade', classifies_boxes=False), steps.info('two-stage')),
    'student FasterRCNN scores classes by sigmoid': (
        steps.info('two-stage'), steps.info('two-stage', sigmoid=True)),
}


@pytest.mark.parametrize('reason', REFUSED)
def test_refuses_a_pair_that_cannot_classify_the_same_proposals(reason):
    pair = DetectorPair(*REFUSED[reason], steps.STRIDES)
    with pytest.raises(ConfigError, match=f'{reason}.*classification=False'):
        DeFeat(pair, classification=True)
    DeFeat(pair, classification=False)


def test_default_refuses_a_two_stage_student_of_a_one_stage_teacher():
    with pytest.raises(ConfigError, match='teacher RetinaNet is one-stage'):
        DeFeat(DetectorPair(steps.info(), steps.info('two-stage'), steps.STRIDES))
    DeFeat(DetectorPair(steps.info('two-stage'), steps.info(), steps.STRIDES))


@pytest.mark.parametrize('name', ['positive_temperature', 'negative_temperature'])
def test_refuses_a_temperature_of_0(name):
    with pytest.raises(ConfigError, match=f'DeFeat.{name}'):
        DeFeat(steps.pair('two-stage'), **{name: 0})


def test_half_precision_is_compared_in_float32():
    step = steps.synthetic_step('two-stage')
    student, teacher = step.student, step.teacher
    defeat = build('two-stage').float()
    exact = defeat(step)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = defeat(step)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # The adaptation may run in half precision, the classification has none.
        torch.testing.assert_close(loss, exact[name], rtol=2e-2 if name in NECK else 1e-6, atol=0)

    half = [own.proposal_logits.detach().bfloat16() for own in (student, teacher)]
    chosen = step.proposal_positives
    torch.testing.assert_close(proposal_divergence(*half, chosen, 2.0),
                               proposal_divergence(*(own.float() for own in half), chosen, 2.0))
