"""What a step says of all anchors and all proposals is what the heads computed."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import build_distiller, losses_of
from mmdet.core import bbox2roi
from mmdet.models import build_head

from gkd.detectors.dense import per_place, scores_apart
from gkd.detectors.one_stage import logits_at, positive_positions
from gkd.detectors.step import Needs, recorded
from gkd.frameworks import anchor_inside_flags, to_batch
from gkd.knowledge import Knowledge
from gkd.registry import KNOWLEDGE

HEADS = dict(one_stage='bbox_head', two_stage='rpn_head')


@KNOWLEDGE.register_module()
class WantsEverything(Knowledge):
    """Asks for all that a step of this pair can give."""

    def __init__(self, pair):
        super().__init__(pair)
        positives = pair.student.samples_positives
        self.needs = Needs(logits=positives, proposals=pair.student.is_two_stage, dense=True,
                           boxes=True)

    def forward(self, step):
        return dict(loss_everything=sum(feature.sum() for feature in step.student.maps) * 0)


def wide_batch():
    """Images that are wider than high: rows and columns cannot be confused."""
    data = small.batch(boxes=((8, 8, 60, 60), (70, 34, 120, 90)))
    data['img'] = data['img'][:, :, :96]
    for meta in data['img_metas']:
        meta.update(img_shape=(96, 128, 3), ori_shape=(96, 128, 3), pad_shape=(96, 128, 3))
    return data


def step_of(teacher, student, data=None):
    """Distiller and a step, with the calls of the student's and the teacher's dense heads."""
    model = build_distiller(teacher, student, knowledge=[dict(type='WantsEverything')])
    head = HEADS['two_stage' if model.pair.student.is_two_stage else 'one_stage']
    data = data or small.batch()
    with recorded(getattr(model.student, head), 'forward') as of_student, \
            recorded(getattr(model.teacher, head), 'forward') as of_teacher:
        _, step = model.observe(to_batch(**data))
    return model, step, head, of_student, of_teacher


@pytest.mark.parametrize('family', small.FAMILIES)
def test_every_place_has_its_logits_anchor_and_box(family):
    detector = small.FAMILIES[family]
    model, step, head, *both_calls = step_of(detector(24), detector(), wide_batch())
    for role, calls in zip(('student', 'teacher'), both_calls):
        dense, dense_head = getattr(step, role).dense, getattr(getattr(model, role), head)
        assert len(calls) == 1, 'the head runs once per step'
        scores, deltas = calls[0].result
        sizes = [level.shape[-2:] for level in scores]
        place = 0
        for level, anchors in enumerate(dense_head.prior_generator.grid_priors(
                sizes, device='cpu')):
            per_cell = len(anchors) // sizes[level].numel()
            for cell in (0, sizes[level].numel() - 1):  # first and last cell of a level
                row, column = divmod(cell, sizes[level][1])
                for anchor in range(per_cell):
                    index = place + cell * per_cell + anchor
                    channels = scores[level].shape[1] // per_cell
                    expected = scores[level][1, anchor * channels:(anchor + 1) * channels, row,
                                             column]
                    torch.testing.assert_close(dense.logits[1, index], expected)
                    own = anchors[cell * per_cell + anchor]
                    torch.testing.assert_close(dense.anchors[index], own)
                    offset = deltas[level][1, anchor * 4:anchor * 4 + 4, row, column]
                    torch.testing.assert_close(dense.deltas[1, index], offset)
                    torch.testing.assert_close(
                        dense.boxes[1, index],
                        dense_head.bbox_coder.decode(own[None], offset[None])[0])
            assert dense.counts[level] == len(anchors)
            place += len(anchors)
        assert dense.logits.shape[1] == place == len(dense.anchors)
    own = step.student.dense
    assert own.logits.requires_grad and not own.boxes.requires_grad
    assert not step.teacher.dense.logits.requires_grad


def test_dense_predictions_cover_the_paired_levels_alone():
    """A teacher that starts at stride 4 meets a student that starts at stride 8."""
    student = small.faster_rcnn()
    student['neck'] = small.neck(16, start_level=1)
    student['rpn_head']['anchor_generator']['strides'] = [8, 16, 32, 64, 128]
    student['roi_head']['bbox_roi_extractor']['featmap_strides'] = [8, 16, 32, 64]
    model, step, _, _, calls = step_of(small.faster_rcnn(24), student)
    assert model.pair.strides == (8, 16, 32, 64)
    scores = calls[0].result[0][1:]
    assert step.teacher.dense.counts == tuple(level[0].numel() for level in scores)
    torch.testing.assert_close(step.teacher.dense.logits[:, :3].squeeze(2), scores[0][:, :, 0, 0])
    torch.testing.assert_close(step.student.dense.anchors, step.teacher.dense.anchors)


@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_logits_of_a_head_that_returns_probabilities(role):
    """As TOOD's."""
    model, usual, *_ = step_of(small.retinanet(24), small.retinanet())
    head = getattr(model, role).bbox_head
    forward = head.forward
    head.forward = lambda maps: ([level.sigmoid() for level in forward(maps)[0]], forward(maps)[1])
    info = dataclasses.replace(getattr(model.pair, role), probabilities=True)
    model.pair = dataclasses.replace(model.pair, **{role: info})
    _, step = model.observe(to_batch(**small.batch()))
    torch.testing.assert_close(getattr(step, role).dense.logits, getattr(usual, role).dense.logits)
    torch.testing.assert_close(getattr(step, role).logits, getattr(usual, role).logits)


def test_positives_of_a_one_stage_student_are_places_of_its_dense_predictions():
    _, step, *_ = step_of(small.retinanet(24), small.retinanet())
    dense, (image, place) = step.student.dense, step.positions.unbind(dim=1)
    assert len(place) == len(step.labels) > 4
    torch.testing.assert_close(dense.logits[image, place], step.student.logits)
    torch.testing.assert_close(dense.anchors[place], torch.cat(step.boxes))


@pytest.mark.parametrize('family', small.FAMILIES)
def test_a_positive_knows_its_object(family):
    detector = small.FAMILIES[family]
    data = small.batch()
    # The second image has its two boxes the other way round, and a third one.
    data['gt_bboxes'][1] = torch.cat([data['gt_bboxes'][1].flip(0),
                                      torch.tensor([[4.0, 70.0, 50.0, 120.0]])])
    data['gt_labels'][1] = torch.tensor([2, 0, 1])
    _, step, *_ = step_of(detector(24), detector(), data)
    boxes, labels = torch.cat(step.gt_boxes), torch.cat(step.gt_labels)
    torch.testing.assert_close(labels[step.objects], step.labels)
    assert set(step.objects.tolist()) == set(range(5))
    own, assigned = torch.cat(step.boxes), boxes[step.objects]
    overlap = (torch.minimum(own[:, 2:], assigned[:, 2:])
               - torch.maximum(own[:, :2], assigned[:, :2]))
    assert (overlap > 0).all()


def test_negative_proposals_are_recorded_too():
    model, step, *_ = step_of(small.faster_rcnn(24), small.faster_rcnn())
    student, teacher, positives = step.student, step.teacher, step.proposal_positives
    assert 0 < positives.sum() < len(positives) == sum(map(len, step.proposals))
    torch.testing.assert_close(student.proposal_logits[positives], student.logits)
    torch.testing.assert_close(torch.cat(step.proposals)[positives], torch.cat(step.boxes))
    with torch.no_grad():
        expected = model.teacher.roi_head._bbox_forward(
            model.teacher.extract_feat(small.batch()['img']),
            bbox2roi(step.proposals))['cls_score']
    torch.testing.assert_close(teacher.proposal_logits, expected)
    torch.testing.assert_close(teacher.logits, expected[positives])


def test_without_anchors_there_are_logits_alone():
    _, step, *_ = step_of(small.fcos(24), small.fcos())
    dense = step.student.dense
    assert dense.logits.shape == (2, sum(dense.counts), small.NUM_CLASSES)
    assert dense.anchors is dense.boxes is None
    assert step.teacher.dense.counts == dense.counts


@pytest.mark.parametrize('family', small.FAMILIES)
def test_nothing_is_computed_that_nobody_asked_for(family):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector(),
                            knowledge=[dict(type='RobustDistillingModule', soft_label=None)])
    data = small.batch()
    _, step = model.student_step(to_batch(**data))
    with recorded(getattr(model.teacher, HEADS[family]), 'forward') as calls:
        teacher = model.teacher_step(data['img'], step)
    assert not calls
    assert step.student.dense is None
    assert teacher.dense is teacher.logits is teacher.proposal_logits is None


@pytest.mark.parametrize('family', small.FAMILIES)
def test_anchors_alone_need_no_head_of_the_teacher(family):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector(), knowledge=[dict(type='FGFI')])
    with recorded(getattr(model.teacher, HEADS[family]), 'forward') as calls:
        _, step = model.observe(to_batch(**small.batch()))
    dense = step.student.dense
    assert not calls and step.teacher.dense is dense.logits is dense.boxes is dense.deltas is None
    assert len(dense.anchors) == sum(dense.counts)


def calls_of_towers(model):
    """A step's losses, and how often the towers of the teacher's head ran."""
    head = model.teacher.bbox_head
    with recorded(head.cls_convs[0], 'forward') as classes, \
            recorded(head.reg_convs[0], 'forward') as boxes:
        losses = losses_of(model, small.batch())
    return losses, len(classes), len(boxes)


@pytest.mark.parametrize('settings', [dict(), dict(global_knowledge=dict(space='classes'))],
                         ids=str)
def test_a_teacher_regresses_no_boxes_that_nobody_reads(settings):
    taught = dict(type='RobustDistillingModule', **settings)
    model = build_distiller(small.retinanet(24), small.retinanet(), knowledge=[taught])
    model.bank = small.random_bank(model.pair, class_channels=model.frozen.class_channels)
    levels = len(model.pair.teacher.strides)
    losses, *calls = calls_of_towers(model)
    assert calls == [levels, 0]
    assert len(model.teacher.bbox_head.reg_convs) > 0, 'only for the time of a step'
    whole = dataclasses.replace(model.pair.teacher, scores_apart=False)
    model.pair = dataclasses.replace(model.pair, teacher=whole)
    expected, *calls = calls_of_towers(model)
    assert calls == [levels, levels]
    assert losses.keys() == expected.keys()
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


def test_boxes_of_the_teacher_that_are_read_are_regressed():
    model = build_distiller(small.retinanet(24), small.retinanet(), knowledge=[dict(type='GID')])
    assert calls_of_towers(model)[1:] == (5, 5)


@pytest.mark.parametrize('kind, apart', [('RetinaHead', True), ('FCOSHead', True),
                                         ('VFNetHead', False), ('RepPointsHead', False)])
def test_which_heads_score_classes_without_regressing_boxes(kind, apart):
    settings = dict(point_feat_channels=32) if kind == 'RepPointsHead' else {}
    head = build_head(dict(type=kind, num_classes=3, in_channels=32, feat_channels=32,
                           stacked_convs=1, **settings)).eval()
    maps = [torch.zeros(1, 32, side, side) for side in (16, 8, 4, 2, 2)]
    assert scores_apart(head, maps) == apart


@pytest.mark.parametrize('family', small.FAMILIES)
def test_a_step_knows_the_images_with_and_without_their_padding(family):
    data = small.batch()
    data['img_metas'][1]['img_shape'] = (100, 72, 3)
    detector = small.FAMILIES[family]
    _, step, *_ = step_of(detector(24), detector(), data)
    assert step.images.shape[-2:] == (128, 128)
    assert step.image_sizes == [(128, 128), (100, 72)]


@pytest.mark.parametrize('family', small.FAMILIES)
def test_no_field_of_one_detector_is_the_others(family):
    detector = small.FAMILIES[family]
    _, step, *_ = step_of(detector(24), detector())
    for field in dataclasses.fields(step.student):
        own, other = (getattr(part, field.name) for part in (step.student, step.teacher))
        assert own is not other or not own, field.name


@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
def test_logits_at_positives_are_those_of_all_places(memory):
    """Also where levels have unlike numbers of anchors, and maps have channels last."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3 * anchors, *size, generator=generator).contiguous(
        memory_format=memory).requires_grad_()
        for anchors, size in ((3, (4, 5)), (2, (2, 3)), (1, (1, 1)))]
    places = torch.cat([per_place(level, 3) for level in maps], dim=1)
    count = places.shape[1]
    for number in (0, 1, 40):
        positions = torch.stack([torch.randint(2, (number,), generator=generator),
                                 torch.randint(count, (number,), generator=generator)], dim=1)
        if number == 40:
            positions[:4, 1] = torch.tensor([0, count - 1, 59, 60])  # ends of levels
        found, expected = logits_at(maps, positions, 3), places[tuple(positions.unbind(1))]
        assert torch.equal(found, expected)
        factor = torch.randn(found.shape, generator=generator)
        for ours, theirs in zip(torch.autograd.grad((found * factor).sum(), maps),
                                torch.autograd.grad((expected * factor).sum(), maps,
                                                    retain_graph=True)):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('allowed_border', [-1, 0, 5])
@pytest.mark.parametrize('numbers', [(None,), (None, 0, None), (0, 0)])
def test_positives_are_found_among_all_anchors(numbers, allowed_border):
    """A head numbers them among the anchors inside the image; images may have none."""
    torch.manual_seed(0)
    boxes, valid = ([[draw(count) for count in (30, 7)] for _ in numbers] for draw in (
        lambda count: torch.rand(count, 4) * 60, lambda count: torch.rand(count) > 0.2))
    metas = [dict(img_shape=(40 + image, 50, 3)) for image in range(len(numbers))]
    sampled, expected = [], []
    for image, number in enumerate(numbers):
        inside = anchor_inside_flags(torch.cat(boxes[image]), torch.cat(valid[image]),
                                     metas[image]['img_shape'][:2], allowed_border)
        sampled.append(SimpleNamespace(pos_inds=torch.arange(int(inside.sum()))[:number:2]))
        expected += [[image, int(anchor)] for anchor in inside.nonzero()[:number:2]]
    found = positive_positions(sampled, SimpleNamespace(result=(boxes, valid)), metas,
                               allowed_border)
    assert found.tolist() == expected
