"""How many operations a step of the knowledge starts, and that levels together equal levels alone.

On a GPU the time of small operations is that of starting them, so their number is counted, which
is the same on any machine.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import synthetic_steps as synthetic
from torch.utils._python_dispatch import TorchDispatchMode

from gkd.detectors import DetectorInfo, DetectorOutputs, DetectorPair, Step
from gkd.detectors.step import DensePredictions
from gkd.knowledge import (
    RobustDistillingModule,
    global_knowledge_loss,
    instance_mask,
    local_knowledge_loss,
    map_levels,
    pool_instances,
    robust_weights,
    soft_label_loss,
)
from gkd.prototypes import PrototypeBank
from gkd.registry import KNOWLEDGE

CLASSES = 80
STRIDES = {'one-stage': (8, 16, 32, 64, 128), 'two-stage': (4, 8, 16, 32, 64)}


class Operations(TorchDispatchMode):
    """Count the operations that are dispatched, but for those that only look at memory anew."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        returns = function._schema.returns
        view = returns and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not view and function is not torch.ops.aten._unsafe_view.default:
            self.counts[function._schema.name] += 1
        return result


def dense_predictions(family, images, sides):
    """Random predictions at one anchor a cell."""
    strides = STRIDES[family]
    anchors = torch.cat([torch.cartesian_prod(torch.arange(side), torch.arange(side)) * stride
                         for side, stride in zip(sides, strides)]).float()
    anchors = torch.cat([anchors, anchors + 40], dim=1)
    count = len(anchors)
    return DensePredictions(
        torch.randn(images, count, CLASSES if family == 'one-stage' else 1, requires_grad=True),
        tuple(side**2 for side in sides), anchors, anchors + torch.rand(images, count, 4),
        torch.randn(images, count, 4, requires_grad=True))


def records(family, images, channels=16, positives=5):
    """Pair and step of five levels, every field filled."""
    strides = STRIDES[family]
    one_stage = family == 'one-stage'
    side = 2 * strides[-1]
    sides = [side // stride for stride in strides]
    info = DetectorInfo('any', family, (channels,) * 5, strides, CLASSES,
                        anchors=(((0.0, 0.0, 40.0, 40.0),),) * 5, sigmoid=one_stage,
                        samples_positives=True, classifies_boxes=True,
                        box_coding=((0.0,) * 4, (1.0,) * 4))
    boxes = [(torch.rand(positives + image, 2, 2) * side).sort(dim=1).values.flatten(1)
             for image in range(images)]
    labels = [torch.randint(CLASSES, (len(image),)) for image in boxes]
    count = sum(map(len, boxes))
    proposals = [torch.cat([image, image]) for image in boxes]

    def outputs():
        return DetectorOutputs(
            maps=tuple(torch.randn(images, channels, size, size, requires_grad=True)
                       for size in sides),
            logits=torch.randn(count, CLASSES + (not one_stage), requires_grad=True),
            roi_features=None if one_stage else torch.randn(count, channels, 7, 7),
            proposal_logits=(None if one_stage
                             else torch.randn(2 * count, CLASSES + 1, requires_grad=True)),
            dense=dense_predictions(family, images, sides))

    bank = PrototypeBank(*([torch.rand(10 * CLASSES, channels) for _ in strides] for _ in '12'),
                         offsets=[torch.arange(0, 10 * CLASSES + 1, 10)] * 5)
    return DetectorPair(info, info, strides), Step(
        (side, side), [(side, side)] * images, strides, boxes, labels, outputs(), outputs(), bank,
        boxes=boxes, labels=torch.cat(labels), objects=torch.arange(count),
        dense_positives=torch.rand(images, sum(size**2 for size in sides)) > 0.9,
        proposals=proposals, roi_levels=torch.arange(count) % 4,
        proposal_positives=torch.cat([torch.arange(len(image)) < len(image) // 2
                                      for image in proposals]))


def count_operations(module, step):
    """Operations forward and backward; what is done once a bank has been done."""
    module(step)
    with Operations() as forward:
        losses = module(step)
    total = sum(losses.values())
    with Operations() as backward:
        total.backward()
    return forward.counts, backward.counts


@pytest.mark.parametrize('family', STRIDES)
def test_the_module_starts_few_operations_whatever_the_batch(family):
    counts = []
    for images in (1, 2, 5):
        pair, step = records(family, images)
        forward, backward = count_operations(RobustDistillingModule(pair), step)
        assert forward.total() <= 200, forward.most_common()
        assert backward.total() <= 100, backward.most_common()
        counts.append((forward, backward))
    assert counts[0] == counts[1] == counts[2]


def test_prototypes_are_brought_to_length_1_once_a_bank():
    pair, step = records('two-stage', images=2)
    module = RobustDistillingModule(pair)
    first = module(step)['loss_global']
    with Operations() as forward:
        assert torch.equal(module(step)['loss_global'], first)
    norms = forward.counts['aten::linalg_vector_norm']
    step.bank = PrototypeBank(step.bank.teacher, step.bank.student, step.bank.offsets)
    with Operations() as forward:
        assert not torch.equal(module(step)['loss_global'], first)
    assert forward.counts['aten::linalg_vector_norm'] == norms + 2


def mixed(family):
    """Maps of unlike channels, levels of unlike prototypes, classes without any, no boxes."""
    step = synthetic.synthetic_step(family, boxes=[*synthetic.BOXES, torch.zeros(0, 4)],
                          labels=[*synthetic.LABELS, torch.zeros(0, dtype=torch.long)])
    channels = (4, 4, 6), (5, 5, 5)
    for part, own in zip((step.student, step.teacher), channels):
        part.maps = tuple(torch.randn(3, count, *old.shape[2:], dtype=torch.float64)
                          for count, old in zip(own, part.maps))
    for feature in step.student.maps:
        feature.requires_grad_()
    offsets = [torch.tensor([0, 3, 3, 7]), torch.tensor([0, 3, 3, 7]), torch.tensor([0, 2, 4, 5])]
    step.bank = PrototypeBank(
        *([torch.randn(int(bounds[-1]), count, dtype=torch.float64)
           for bounds, count in zip(offsets, own)] for own in channels), offsets)
    student, teacher = (DetectorInfo('any', family, own, synthetic.STRIDES, 3, anchors=(),
                                     sigmoid=False, samples_positives=True, classifies_boxes=True,
                                     box_coding=()) for own in channels)
    return DetectorPair(teacher, student, synthetic.STRIDES), step


def level_by_level(module, step):
    """The losses of a one-stage module by the public functions of one level."""
    boxes, count = step.boxes, len(step.strides)
    levels = map_levels(torch.cat(boxes), count)
    own = torch.zeros(len(levels), dtype=torch.float64)
    shared, inside, outside = 0, 0, 0
    for level, stride in enumerate(step.strides):
        student, teacher = (pool_instances(part.maps[level], boxes, 1 / stride)
                            for part in (step.student, step.teacher))
        basis = step.bank.student[level], step.bank.teacher[level]
        weights = robust_weights(student, teacher, *basis, step.labels, step.bank.offsets[level])
        own = torch.where(levels == level, weights, own)
        shared += global_knowledge_loss(student, teacher, *basis, weights)
        feature = step.student.maps[level]
        mask = instance_mask(boxes, weights.split([len(image) for image in boxes]), level, count,
                             stride, feature.shape[2:])
        adapted = module.local_knowledge.adaptation[level](feature)
        foreground, background = local_knowledge_loss(adapted, step.teacher.maps[level], mask)
        inside, outside = inside + foreground, outside + background
    return dict(loss_global=5 * shared, loss_local_fg=inside, loss_local_bg=4 * outside,
                loss_soft=soft_label_loss(step.student.logits, step.teacher.logits, own))


def test_levels_together_are_levels_alone():
    pair, step = mixed('one-stage')
    module = RobustDistillingModule(pair).double()
    together, alone = module(step), level_by_level(module, step)
    assert together.keys() == alone.keys()
    inputs = [*step.student.maps, step.student.logits, *module.parameters()]
    for name, loss in together.items():
        torch.testing.assert_close(loss, alone[name], rtol=1e-6, atol=0, check_dtype=False)
        gradients = [torch.autograd.grad(losses[name], inputs, allow_unused=True,
                                         retain_graph=True) for losses in (together, alone)]
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_pooling_in_float32_is_as_exact_as_a_mean():
    """Also far from 0, where sums over the map, taken apart again, would lose digits."""
    feature = torch.randn(2, 8, 200, 168) + 30
    boxes = [(torch.rand(40, 2, 2) * 800).sort(dim=1).values.flatten(1) for _ in range(2)]
    exact = pool_instances(feature.double(), boxes, 1 / 4)
    error = (pool_instances(feature, boxes, 1 / 4) - exact).abs().max() / 30
    x1, y1, x2, y2 = (boxes[0][0] / 4).long()
    plain = feature[0, :, y1:y2 + 1, x1:min(x2, 167) + 1].mean(dim=(1, 2))
    assert error < 1e-6
    torch.testing.assert_close(plain.double(), exact[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize('family', STRIDES)
@pytest.mark.parametrize('method', ['CWD', 'FGFI', 'MGD', 'PFI', 'PKD'])
def test_no_method_starts_more_than_400_operations(method, family):
    pair, step = records(family, images=2)
    module = KNOWLEDGE.build(dict(type=method), default_args=dict(pair=pair))
    forward, backward = count_operations(module, step)
    assert forward.total() + backward.total() <= 400, (forward + backward).most_common()


def test_a_unit_vector_has_the_gradient_of_a_quotient():
    from gkd.knowledge.losses import Unit
    vectors = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Unit.apply, vectors)
    torch.testing.assert_close(Unit.apply(vectors), F.normalize(vectors, dim=1))
