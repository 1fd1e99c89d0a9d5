"""What a step's record says of all anchors and all proposals is what the heads computed."""

import pytest
import torch
from helpers import small_detectors as small
from mmdet.core import bbox2roi
from test_distiller import build_distiller

from gkd.detectors.step import recorded
from gkd.knowledge import Knowledge
from gkd.registry import KNOWLEDGE

HEADS = dict(one_stage='bbox_head', two_stage='rpn_head')


@KNOWLEDGE.register_module()
class WantsEverything(Knowledge):
    """Asks for all that a step of this pair can give."""

    needs_dense = True

    def __init__(self, pair):
        super().__init__(pair)
        self.needs_logits = self.needs_proposals = pair.student.samples_positives

    def forward(self, student, teacher, bank, progress):
        return dict(loss_everything=sum(feature.sum() for feature in student.maps) * 0)


def steps_of(teacher, student, data=None):
    """Distiller and both records of a step, with the calls of both dense heads."""
    model = build_distiller(teacher, student, knowledge=[dict(type='WantsEverything')])
    head = HEADS['two_stage' if model.pair.student.is_two_stage else 'one_stage']
    data = data or small.batch()
    with recorded(getattr(model.student, head), 'forward') as of_student, \
            recorded(getattr(model.teacher, head), 'forward') as of_teacher:
        _, student = model.student_step(**data)
        teacher = model.teacher_step(data['img'], student)
    return model, head, (student, of_student), (teacher, of_teacher)


@pytest.mark.parametrize('family', small.FAMILIES)
def test_every_place_has_its_logits_anchor_and_box(family):
    detector = small.FAMILIES[family]
    model, head, *roles = steps_of(detector(24), detector())
    for owner, (record, calls) in zip((model.student, model.teacher), roles):
        dense, dense_head = record.dense, getattr(owner, head)
        assert len(calls) == 1, 'the head runs once a step'
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
    assert roles[0][0].dense.logits.requires_grad and not roles[0][0].dense.boxes.requires_grad
    assert not roles[1][0].dense.logits.requires_grad


def test_dense_predictions_cover_the_paired_levels_alone():
    """A teacher that starts at stride 4 meets a student that starts at stride 8."""
    model, _, (student, _), (teacher, calls) = steps_of(small.faster_rcnn(24), dict(
        small.faster_rcnn(), neck=dict(small.neck(16), num_outs=4),
        rpn_head=dict(small.faster_rcnn()['rpn_head'], anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32]))))
    assert model.pair.strides == (4, 8, 16, 32)
    assert len(calls[0].result[0]) == 5 and len(teacher.dense.counts) == 4
    torch.testing.assert_close(student.dense.anchors, teacher.dense.anchors)


def test_places_that_a_one_stage_student_trains_as_objects():
    _, _, (student, calls), _ = steps_of(small.retinanet(24), small.retinanet())
    positives = student.dense.positives
    assert positives.sum() == len(student.labels) > 4
    torch.testing.assert_close(student.dense.logits[positives], student.logits)
    torch.testing.assert_close(student.dense.anchors.expand(2, -1, 4)[positives],
                               torch.cat(student.boxes))


@pytest.mark.parametrize('family', small.FAMILIES)
def test_a_positive_knows_its_object(family):
    detector = small.FAMILIES[family]
    data = small.batch()
    # The second image has its two boxes the other way round, and a third one.
    data['gt_bboxes'][1] = torch.cat([data['gt_bboxes'][1].flip(0),
                                      torch.tensor([[4.0, 70.0, 50.0, 120.0]])])
    data['gt_labels'][1] = torch.tensor([2, 0, 1])
    _, _, (student, _), _ = steps_of(detector(24), detector(), data)
    boxes, labels = torch.cat(student.gt_boxes), torch.cat(student.gt_labels)
    torch.testing.assert_close(labels[student.objects], student.labels)
    assert set(student.objects.tolist()) == set(range(5))
    own, assigned = torch.cat(student.boxes), boxes[student.objects]
    overlap = (torch.minimum(own[:, 2:], assigned[:, 2:])
               - torch.maximum(own[:, :2], assigned[:, :2]))
    assert (overlap > 0).all()


def test_negative_proposals_are_recorded_too():
    model, _, (student, _), (teacher, _) = steps_of(small.faster_rcnn(24), small.faster_rcnn())
    positives = student.proposal_positives
    assert 0 < positives.sum() < len(positives) == sum(map(len, student.proposals))
    torch.testing.assert_close(student.proposal_logits[positives], student.logits)
    torch.testing.assert_close(torch.cat(student.proposals)[positives], torch.cat(student.boxes))
    with torch.no_grad():
        expected = model.teacher.roi_head._bbox_forward(
            model.teacher.extract_feat(small.batch()['img']),
            bbox2roi(student.proposals))['cls_score']
    torch.testing.assert_close(teacher.proposal_logits, expected)
    torch.testing.assert_close(teacher.logits, expected[positives])


def test_without_anchors_there_are_logits_alone():
    _, _, (student, calls), (teacher, _) = steps_of(small.fcos(24), small.fcos())
    assert student.dense.logits.shape == (2, sum(student.dense.counts), small.NUM_CLASSES)
    assert student.dense.anchors is student.dense.boxes is student.dense.positives is None
    assert teacher.dense.counts == student.dense.counts


@pytest.mark.parametrize('family', small.FAMILIES)
def test_nothing_is_computed_that_nobody_asked_for(family):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector(),
                            knowledge=[dict(type='RobustDistillingModule', soft_label=None)])
    data = small.batch()
    _, student = model.student_step(**data)
    with recorded(getattr(model.teacher, HEADS[family]), 'forward') as calls:
        teacher = model.teacher_step(data['img'], student)
    assert not calls
    assert student.dense is teacher.dense is teacher.logits is teacher.proposal_logits is None
