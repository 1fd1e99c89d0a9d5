"""How many operations a step of the knowledge starts, and that levels together equal levels alone.

On a GPU the time of small operations is that of starting them, so their number is counted, which
is the same on any machine.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import small_detectors as small
from helpers import synthetic_steps as synthetic
from helpers.distillers import build_distiller
from operations import IN_CLASS_SPACE, METHODS, STRIDES, Operations, count_operations, records

from gkd.detectors import DetectorInfo, DetectorPair
from gkd.frameworks import student_losses, to_batch
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


@pytest.mark.parametrize('family', STRIDES)
def test_the_module_starts_few_operations_whatever_the_batch(family):
    counts = []
    for images in (1, 2, 5):
        pair, step = records(family, images)
        forward, backward = count_operations(RobustDistillingModule(pair), step)
        assert sum(forward.values()) <= 150, forward.most_common()
        assert sum(backward.values()) <= 52, backward.most_common()
        counts.append((forward, backward))
    # A single image saves a copy of a mask.
    assert not counts[0][0] - counts[1][0] and counts[0][1] == counts[1][1]
    assert counts[1] == counts[2]


@pytest.mark.parametrize('family', STRIDES)
def test_autocast_adds_copies_of_weights_and_of_the_student_only(family):
    counts = [count_operations(RobustDistillingModule(pair), step)
              for pair, step in (records(family, 2, dtype=dtype)
                                 for dtype in (torch.float, torch.bfloat16))]
    # Weights and biases of five layers, and the five maps, which are pooled in full precision.
    for plain, autocast in zip(*counts):
        assert sum(autocast.values()) <= sum(plain.values()) + 15, autocast - plain


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


@pytest.mark.parametrize('images', [1, 2, 8])
def test_reading_a_one_stage_step_starts_few_operations(images):
    """Besides what the detectors themselves compute, and few more for every image."""
    model = build_distiller(small.retinanet(), small.retinanet())
    batch = to_batch(**small.batch(images))
    counts = {}

    def count(name, function):
        with Operations() as operations:
            result = function()
        counts[name] = sum(operations.counts.values())
        return result

    count('student', lambda: student_losses(model.student, batch))
    _, step = count('student step', lambda: model.student_step(batch))
    with torch.no_grad():
        maps = count('maps', lambda: model.teacher.extract_feat(step.images))
        count('scores', lambda: model.teacher.bbox_head(maps))
    count('teacher step', lambda: model.teacher_step(step.images, step))
    assert counts['student step'] - counts['student'] <= 37 + 5 * images
    assert counts['teacher step'] - counts['maps'] - counts['scores'] <= 20


@pytest.mark.parametrize('method, family', [
    (method, family) for method in METHODS for family in STRIDES])
def test_no_method_starts_more_than_400_operations(method, family):
    pair, step = records(family, images=4)
    module = KNOWLEDGE.build(dict(METHODS[method], pair=pair))
    forward, backward = count_operations(module, step)
    both = forward + backward
    assert sum(both.values()) <= 400, both.most_common()
    # Under autocast FBKD and FGD have many layers between which precision changes.
    pair, step = records(family, images=4, dtype=torch.bfloat16)
    under_autocast = sum(sum(part.values()) for part in count_operations(module, step))
    assert under_autocast <= dict(FBKD=566, FGD=544).get(method, 400)
    # The gradient of `x[rows]`: on a GPU it sorts the rows, in many launches; index_select's adds.
    assert not backward['aten::index_put']


@pytest.mark.parametrize('family', STRIDES)
def test_the_class_space_starts_few_operations_more(family):
    """Of them, four layers on each of five levels are 40 forward, and 40 backward."""
    for dtype, limits in ((torch.float, (216, 82)), (torch.bfloat16, (238, 93))):
        pair, step = records(family, images=3, dtype=dtype)
        module = KNOWLEDGE.build(dict(METHODS[IN_CLASS_SPACE], pair=pair))
        for counts, limit in zip(count_operations(module, step), limits):
            assert sum(counts.values()) <= limit, counts.most_common()


def test_a_unit_vector_has_the_gradient_of_a_quotient():
    from gkd.knowledge.similarities import Unit
    vectors = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Unit.apply, vectors)
    torch.testing.assert_close(Unit.apply(vectors), F.normalize(vectors, dim=1))
