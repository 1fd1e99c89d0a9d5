"""Global knowledge in the class space of a two-stage teacher, whose RoI head reads boxes."""

import copy

import pytest
import torch
from helpers import small_detectors as small
from helpers.devices import StayOnDevice, fake_gpu, to_fake
from helpers.distillers import build, build_distiller, losses_of
from helpers.synthetic_steps import STRIDES, info, pair_of, synthetic_step
from torch._subclasses import FakeTensorMode

from gkd.bank import PrototypeBank
from gkd.detectors.inspection import inspect_detector
from gkd.detectors.roi_heads import classify
from gkd.detectors.step import recorded
from gkd.errors import ConfigError
from gkd.frameworks import bbox2roi, to_batch
from gkd.knowledge import RobustDistillingModule
from gkd.knowledge.class_space import ClassSpaceKnowledge
from gkd.prototypes.features import instance_features

IN_CLASS_SPACE = dict(type='RobustDistillingModule', global_knowledge=dict(space='classes'))
WIDTH = 32  # of the small head's layers


def able(**traits):
    """Traits of a two-stage teacher whose head has class layers."""
    return info('two-stage', has_class_layers=True, roi_strides=STRIDES[:2], **traits)


def build_pair(teacher=None, **settings):
    model = build_distiller(teacher or small.faster_rcnn(24), small.faster_rcnn(),
                            knowledge=[dict(IN_CLASS_SPACE, **settings)])
    model.bank = small.random_bank(model.pair, class_channels=WIDTH)
    return model


def cascade(channels=24):
    config = small.faster_rcnn(channels)
    head = config['roi_head']
    config.update(type='CascadeRCNN', roi_head=dict(
        head, type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5],
        bbox_head=[copy.deepcopy(head['bbox_head']) for _ in range(2)]))
    config['train_cfg']['rcnn'] = [config['train_cfg']['rcnn']] * 2
    return config


@pytest.mark.parametrize('teacher', [small.faster_rcnn, cascade])
def test_class_layers_lead_to_the_heads_own_scores(teacher):
    model = build_pair(teacher(24))
    data = small.batch()
    data['gt_bboxes'][0][0, 2:] = 2000  # of the coarsest level, if there were no end of them
    maps, rois = model.teacher.extract_feat(data['img']), bbox2roi(data['gt_bboxes'])
    layers = model.frozen.class_layers
    scores = classify(model.teacher.roi_head, maps, rois)['cls_score']
    torch.testing.assert_close(layers.bbox_head.fc_cls(layers(maps, rois)), scores)
    assert model.frozen.class_channels == WIDTH


@pytest.mark.parametrize('teacher', [small.faster_rcnn, cascade])
def test_the_teachers_head_reads_proposals_once(teacher):
    model = build_pair(teacher(24))
    heads = model.teacher.roi_head.bbox_head
    head = heads[0] if teacher is cascade else heads
    with recorded(head.fc_cls, 'forward') as calls:
        _, step = model.observe(to_batch(**small.batch()))
    assert len(calls) == 1
    read = step.class_layers(step.teacher.maps, bbox2roi(step.proposals))
    torch.testing.assert_close(step.teacher.class_features, read)
    assert len(read) == len(step.student.proposal_logits) == len(step.teacher.proposal_logits)
    assert step.teacher.dense is None  # its RPN has not run


def test_generation_reads_the_chosen_instances():
    model = build_pair()
    data = small.batch()
    levels = model.pair.levels(model.pair.teacher)
    *pooled, read = instance_features(model.teacher, levels, data['img'], data['gt_bboxes'],
                                      class_layers=model.frozen.class_layers)
    usual = instance_features(model.teacher, levels, data['img'], data['gt_bboxes'])
    assert all(map(torch.equal, usual, pooled))
    maps = model.teacher.extract_feat(data['img'])
    expected = model.frozen.class_layers(maps, bbox2roi(data['gt_bboxes']))
    torch.testing.assert_close(read, expected.detach())


def numbered(step, chosen):
    """A step whose class layers note which boxes they are given."""
    def read(maps, rois):
        chosen.extend(rois.tolist())
        return maps[0].mean(dim=(2, 3))[rois[:, 0].long()]

    step.class_layers = read
    number = len(step.student.proposal_logits)
    step.proposals = list((torch.arange(4.0 * number) + 1).reshape(-1, 4).chunk(len(step.images)))
    step.teacher.class_features = torch.rand(number, 8)
    step.bank = PrototypeBank(student=[torch.rand(3, 8)], teacher=[torch.rand(3, 8)],
                              offsets=[torch.tensor([0, 3])], class_features=[torch.rand(3, 8)])
    return step


@pytest.mark.parametrize('classes', [3, 80])
def test_only_the_most_confident_proposals_are_compared(classes):
    """Those of which either detector is most confident, of a class and not of background.

    A teacher that knows more classes is asked about the student's, and background.
    """
    chosen = []
    step = numbered(synthetic_step('two-stage'), chosen)
    for part in (step.student, step.teacher):
        part.proposal_logits = torch.zeros_like(part.proposal_logits)
        part.proposal_logits[:, -1] = 9
    step.student.proposal_logits[2, 0] = 20
    step.teacher.proposal_logits[5, 1] = 21
    step.teacher.proposal_logits[7, -1] = 50
    part = ClassSpaceKnowledge(pair_of(able(num_classes=classes), info('two-stage')), num_cells=1)
    part(step, [feature.detach() for feature in step.student.maps], decay=1.0)
    assert sorted(chosen) == sorted(bbox2roi(step.proposals)[[2, 5]].tolist())


def test_every_class_may_be_one_that_a_sigmoid_is_confident_of():
    """There is no background whose score would be left out."""
    chosen = []
    step = numbered(synthetic_step('two-stage'), chosen)
    for part in (step.student, step.teacher):
        part.proposal_logits = torch.full_like(part.proposal_logits[:, :-1], -9)
    step.student.proposal_logits[2, -1] = step.teacher.proposal_logits[5, -1] = 9
    part = ClassSpaceKnowledge(pair_of(able(sigmoid=True), info('two-stage', sigmoid=True)),
                               num_cells=1)
    part(step, [feature.detach() for feature in step.student.maps], decay=1.0)
    assert sorted(chosen) == sorted(bbox2roi(step.proposals)[[2, 5]].tolist())


def test_boxes_are_read_from_the_levels_that_the_teachers_head_pools():
    step = numbered(synthetic_step('two-stage'), [])
    teacher = info('two-stage', has_class_layers=True, roi_strides=STRIDES[1:])
    part = ClassSpaceKnowledge(pair_of(teacher, info('two-stage')))
    given = []

    def read(maps, rois):
        given.extend(maps)
        return torch.zeros(len(rois), 8)

    step.class_layers = read
    adapted = [feature.detach() for feature in step.student.maps]
    part(step, adapted, decay=1.0)
    assert len(given) == 2 and all(map(torch.equal, given, adapted[1:]))


def test_student_and_teacher_are_compared_at_the_same_proposals():
    model = build_pair(small.faster_rcnn(), local_knowledge=None, soft_label=None)
    _, step = model.observe(to_batch(**small.batch()))
    module = model.knowledge[0]
    step.student.maps = step.teacher.maps
    module.adaptation = torch.nn.ModuleList(torch.nn.Identity() for _ in step.strides)
    assert module(step)['loss_global'] < 1e-5
    step.teacher.class_features = step.teacher.class_features.flip(0)
    assert module(step)['loss_global'] > 1e-5


@pytest.mark.parametrize('settings', [{}, dict(local_knowledge=None, soft_label=None)])
def test_it_teaches_the_student_and_every_adaptation_layer(settings):
    """Distributed training would wait for a layer without a gradient."""
    model = build_pair(**settings)
    losses = losses_of(model, small.batch())
    sum(loss for name, loss in losses.items() if name in (
        'loss_global', 'loss_local_fg', 'loss_local_bg')).backward()
    assert model.student.neck.fpn_convs[0].conv.weight.grad.any()
    assert all(parameter.grad is not None for parameter in model.knowledge.parameters())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is None for parameter in model.frozen.class_layers.parameters())


@fake_gpu
def test_it_does_not_wait_for_the_device():
    model = build_pair()
    _, step = model.observe(to_batch(**small.batch()))
    step.class_layers = None
    with FakeTensorMode() as fake, torch.device('cuda'):
        module = RobustDistillingModule(model.pair, global_knowledge=dict(space='classes'))
        step = to_fake(step, fake, 'cuda')
        step.class_layers = lambda maps, rois: maps[0].mean().expand(len(rois), WIDTH)
        with StayOnDevice():
            loss = module(step)['loss_global']
    assert loss.device.type == 'cuda' and loss.dim() == 0


def test_other_losses_stay_as_they_are():
    data = small.batch()
    ours, usual = losses_of(build_pair(), data), losses_of(build_pair(global_knowledge={}), data)
    assert ours.keys() == usual.keys()
    for name in ('loss_local_fg', 'loss_local_bg', 'loss_soft'):
        torch.testing.assert_close(ours[name], usual[name])
    assert not torch.equal(ours['loss_global'], usual['loss_global'])


def test_a_teacher_in_half_precision_is_read_in_full():
    model = build_pair()
    model.frozen.precision = 'bfloat16'  # which a CPU computes, too
    model.frozen.apply(lambda tensor: tensor)
    assert next(model.teacher.parameters()).dtype == torch.bfloat16
    _, step = model.observe(to_batch(**small.batch()))
    assert step.teacher.class_features.dtype == torch.float32
    read = step.class_layers(step.teacher.maps, bbox2roi(step.proposals))
    assert read.dtype == torch.float32
    torch.testing.assert_close(step.teacher.class_features, read, rtol=0.1, atol=0.1)


def test_boxes_are_pooled_under_autocast():
    """Adapted maps are in half precision there, and boxes are not."""
    data, model = small.batch(), build_pair()
    full = losses_of(model, data)['loss_global']
    with torch.autocast('cpu', dtype=torch.bfloat16), \
            recorded(model.frozen.class_layers, 'forward') as calls:
        loss = losses_of(model, data)['loss_global']
    assert all(level.dtype == torch.float32 for level in calls[0].args[0])
    loss.backward()
    assert loss.dtype == torch.float32 and model.student.neck.fpn_convs[0].conv.weight.grad.any()
    torch.testing.assert_close(loss, full, rtol=0.1, atol=0)


def head_of(config, **settings):
    config['roi_head']['bbox_head'].update(settings)
    return config


@pytest.mark.parametrize('teacher, strides', [
    (small.faster_rcnn(), (4, 8, 16, 32)),
    (head_of(small.faster_rcnn(), type='Shared4Conv1FCBBoxHead', conv_out_channels=16),
     (4, 8, 16, 32)),
    (cascade(), (4, 8, 16, 32)),
    (small.retinanet(), ())])
def test_the_strides_that_a_roi_head_reads(teacher, strides):
    found = inspect_detector(build(teacher), 'teacher')
    assert found.roi_strides == strides and found.has_class_layers


def test_a_head_of_two_branches_has_no_class_layers():
    """Double-Head's branches are given features that it makes of its own."""
    config = small.faster_rcnn()
    config['roi_head'].update(type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3)
    head = config['roi_head']['bbox_head']
    head.update(type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1, conv_out_channels=32)
    found = inspect_detector(build(config), 'teacher')
    assert found.classifies_boxes and not found.has_class_layers and found.roi_strides == ()


@pytest.mark.parametrize('teacher, student, says', [
    (info('two-stage'), info('two-stage'), 'teacher FasterRCNN has no layers that read classes'),
    (able(), info(), 'student RetinaNet is one-stage and classifies no proposals'),
    (able(classifies_boxes=False), info('two-stage'), 'gives no class logits for given boxes')])
def test_what_cannot_be_is_said(teacher, student, says):
    with pytest.raises(ConfigError, match='global_knowledge.space = "classes".*' + says):
        RobustDistillingModule(pair_of(teacher, student), soft_label=None,
                               global_knowledge=dict(space='classes'))


def test_maps_that_the_student_lacks_are_named():
    teacher = info('two-stage', has_class_layers=True, roi_strides=(2, *STRIDES[:2]))
    with pytest.raises(ConfigError, match=r'reads maps of strides \(2, .* has none of 2; '):
        RobustDistillingModule(pair_of(teacher, info('two-stage')), soft_label=None,
                               global_knowledge=dict(space='classes'))


def test_it_says_where_it_teaches():
    said = build_pair(soft_label=None, local_knowledge=None).knowledge[0].describe()
    assert said == ('global knowledge at the proposals where either detector is most confident '
                    'of a class')
