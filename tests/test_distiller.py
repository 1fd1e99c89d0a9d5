"""The distiller: what it computes, what it leaves alone, what it refuses."""

import copy
import dataclasses
import logging
import random
import re

import numpy as np
import pytest
import torch
from helpers import small_detectors as small  # noqa: E402
from helpers import synthetic_steps as steps
from helpers.distillers import RDM_TERMS, build, build_distiller, losses_of, total
from mmcv import Config
from mmcv.runner.checkpoint import get_state_dict as saved_weights
from mmdet.models import build_detector

import gkd  # noqa: F401
from gkd.detectors import DetectorPair, one_stage, two_stage  # noqa: E402
from gkd.detectors.inspection import inspect_detector
from gkd.detectors.step import DetectorOutputs, Needs, recorded  # noqa: E402
from gkd.errors import CheckpointError, ConfigError  # noqa: E402
from gkd.frameworks import to_batch
from gkd.knowledge import Knowledge, RobustDistillingModule
from gkd.registry import KNOWLEDGE


@pytest.mark.parametrize('family', small.FAMILIES)
def test_student_trains_as_without_teacher(family):
    detector = small.FAMILIES[family]
    plain = build(detector())
    alone = build_distiller(detector(24), detector(), knowledge=())
    taught = build_distiller(detector(24), detector())
    data = small.batch()
    expected = losses_of(plain, data)
    for model in (alone, taught):
        losses = losses_of(model, data)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=0, atol=0)


@pytest.mark.parametrize('family', small.FAMILIES)
def test_step_teaches_student_and_leaves_teacher(family):
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector())
    losses = losses_of(model, small.batch())
    assert RDM_TERMS < losses.keys()
    assert all(losses[name] > 0 and losses[name].isfinite() for name in RDM_TERMS)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    total(losses).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not unreached
    # Batch statistics of the teacher must not move either.
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize('family', small.FAMILIES)
def test_no_knowledge_without_boxes(family):
    model = build_distiller(small.FAMILIES[family](), small.FAMILIES[family]())
    losses = losses_of(model, small.batch(boxes=()))
    assert RDM_TERMS < losses.keys()
    assert losses['loss_global'] == losses['loss_soft'] == losses['loss_local_fg'] == 0
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.knowledge.parameters())


def test_teacher_is_hidden_but_moves():
    model = build_distiller(small.retinanet(), small.retinanet())
    assert not any('teacher' in name for name in model.state_dict())
    teacher = set(map(id, model.teacher.parameters()))
    assert not teacher & set(map(id, model.parameters()))
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    model.double()
    assert all(parameter.dtype == torch.double for parameter in model.teacher.parameters())


def test_decay_and_weights_scale_terms():
    model = build_distiller(small.retinanet(24), small.retinanet())
    data = small.batch()
    start = losses_of(model, data)
    model.progress = 0.75
    late = losses_of(model, data)
    for name in ('loss_global', 'loss_local_fg', 'loss_local_bg'):
        torch.testing.assert_close(late[name], start[name] / 4)
    torch.testing.assert_close(late['loss_soft'], start['loss_soft'])


def test_parts_can_be_left_out():
    knowledge = [dict(type='RobustDistillingModule', global_knowledge=None, soft_label=None)]
    model = build_distiller(small.retinanet(), small.retinanet(), knowledge=knowledge)
    losses = losses_of(model, small.batch())
    assert losses.keys() & RDM_TERMS == {'loss_local_fg', 'loss_local_bg'}
    assert not model.needs.logits


@pytest.mark.parametrize('border', [-1, 0])
def test_one_stage_positives_are_where_the_head_assigned_them(border):
    """Of all anchors, or of those inside of the image without its padding."""
    config = small.retinanet()
    config['train_cfg']['allowed_border'] = border
    model = build_distiller(small.retinanet(), config)
    student = model.student
    data = small.batch()
    data['img_metas'][0]['img_shape'] = (100, 128, 3)
    with recorded(student.bbox_head, 'get_targets') as targets, \
            recorded(student.bbox_head, 'forward') as forwards:
        _, step = one_stage.student_step(student, model.pair, model.needs, to_batch(**data))
    labels = torch.cat(targets[0].result[0], dim=1)
    images, anchors = torch.nonzero(labels < small.NUM_CLASSES, as_tuple=True)
    assert len(anchors) > 4
    torch.testing.assert_close(step.positions, torch.stack([images, anchors], dim=1))
    torch.testing.assert_close(step.labels, labels[images, anchors])
    flat = torch.cat([scores.permute(0, 2, 3, 1).reshape(2, -1, small.NUM_CLASSES)
                      for scores in forwards[0].result[0]], dim=1)
    torch.testing.assert_close(step.student.logits, flat[images, anchors])
    boxes = torch.cat(student.bbox_head.prior_generator.grid_priors(
        [scores.shape[-2:] for scores in forwards[0].result[0]], device='cpu'))
    torch.testing.assert_close(torch.cat(step.boxes), boxes[anchors])


def test_two_stage_positives_are_those_of_the_loss():
    model = build_distiller(small.faster_rcnn(), small.faster_rcnn())
    _, step = model.student_step(to_batch(**small.batch()))
    boxes = torch.cat(step.boxes)
    assert len(step.student.logits) == len(step.labels) == len(boxes) == len(step.roi_levels)
    # Ground truth is among the proposals, so it is sampled and keeps its label.
    truth = small.batch()['gt_bboxes'][0]
    found = (boxes[:, None] == truth[None]).all(-1)
    assert found.any(0).all()
    torch.testing.assert_close(step.labels[found[:, 1]],
                               torch.ones_like(step.labels[found[:, 1]]))
    # Pooling the positives again must give the recorded features.
    from mmdet.core import bbox2roi
    extractor = model.student.roi_head.bbox_roi_extractor
    again = extractor(step.student.maps[:4], bbox2roi(step.boxes))
    torch.testing.assert_close(again, step.student.roi_features)
    assert torch.equal(step.roi_levels, extractor.map_roi_levels(bbox2roi(step.boxes), 4))


def test_boxes_belong_to_the_paired_level_next_to_the_one_that_they_are_pooled_from():
    extractor = build(small.faster_rcnn()).roi_head.bbox_roi_extractor
    sides = torch.tensor([50.0, 150, 300, 600])
    rois = torch.stack([sides * 0, sides * 0, sides * 0, sides, sides], dim=1)
    assert extractor.map_roi_levels(rois, 4).tolist() == [0, 1, 2, 3]
    pair = steps.pair_of(steps.info('two-stage'), steps.info('two-stage'))
    assert pair.strides == (8, 16, 32)
    assert two_stage.roi_levels(extractor, rois, pair).tolist() == [0, 0, 1, 2]


def test_of_several_maps_of_one_stride_the_last_is_taken():
    """As of stacked hourglasses."""
    info = dataclasses.replace(steps.info(), strides=(4, 4, 8), channels=(1, 2, 3))
    pair = DetectorPair(info, info, (4, 8))
    assert pair.levels(info) == (1, 2) and pair.channels(info) == (2, 3)


def test_positives_of_a_sampler_that_runs_the_head_itself():
    """OHEM samples by losses."""
    config = small.faster_rcnn()
    config['train_cfg']['rcnn']['sampler'].update(type='OHEMSampler')
    model = build_distiller(small.faster_rcnn(), config)
    assert model.pair.student.samples_positives
    with recorded(model.student.roi_head.bbox_head, 'forward') as calls:
        _, step = model.student_step(to_batch(**small.batch()))
    assert len(calls) > 1 and len(calls[-1].result[0]) == sum(map(len, step.proposals))
    assert torch.equal(step.student.proposal_logits, calls[-1].result[0])


def test_equal_teacher_and_student_have_nothing_to_learn():
    knowledge = [dict(type='RobustDistillingModule', local_knowledge=None)]
    model = build_distiller(small.retinanet(), small.retinanet(), knowledge=knowledge)
    model.student.eval()
    model.teacher.load_state_dict(model.student.state_dict())
    model.bank.teacher = model.bank.student
    losses = losses_of(model, small.batch())
    assert losses['loss_global'] < 1e-10
    assert losses['loss_soft'].abs() < 1e-7


def test_families_and_channels_mix():
    knowledge = [dict(type='RobustDistillingModule', soft_label=None)]
    model = build_distiller(small.faster_rcnn(24), small.retinanet(16), knowledge=knowledge)
    assert model.pair.strides == (8, 16, 32, 64)
    assert RDM_TERMS - {'loss_soft'} < losses_of(model, small.batch()).keys()
    model = build_distiller(small.retinanet(24), small.faster_rcnn(16), knowledge=knowledge)
    assert RDM_TERMS - {'loss_soft'} < losses_of(model, small.batch()).keys()


def test_what_is_taught_at_what_is_said():
    pair = steps.pair()
    assert RobustDistillingModule(pair).describe('RetinaNet') == (
        'global knowledge, local knowledge, soft labels at the positives that RetinaNet trains on')
    fcos = steps.info(samples_positives=False, classifies_boxes=False, trains_places=True)
    pair = dataclasses.replace(pair, student=fcos)
    cells = 'soft labels at the cells that the student trains as objects'
    module = RobustDistillingModule(pair, local_knowledge=None)
    assert module.describe() == f'global knowledge at the ground-truth boxes; {cells}'
    assert module.describe_left_out() == ''
    module = RobustDistillingModule(pair, global_knowledge=None, local_knowledge=None)
    assert module.describe() == cells
    module = RobustDistillingModule(pair, soft_label=None)
    assert module.describe_left_out() == 'soft labels: soft_label=None.'


@pytest.mark.parametrize('teacher, why', [
    (dict(anchors=()), 'different anchors'),
    (dict(sigmoid=False), 'scores classes by sigmoid, the other by softmax'),
    (dict(classifies_boxes=False), 'gives no class logits'),
    (dict(family='two-stage'), 'a two-stage teacher')])
def test_soft_labels_are_left_out_where_they_cannot_be_compared(teacher, why):
    module = RobustDistillingModule(steps.pair_of(steps.info(**teacher), steps.info()))
    assert module.soft_label is None and not module.needs.logits
    assert why in module.describe_left_out()


def test_anchor_free_student_learns_at_ground_truth():
    knowledge = [dict(type='RobustDistillingModule', soft_label=None, instances='gt')]
    model = build_distiller(small.fcos(), small.fcos(), knowledge=knowledge)
    losses = losses_of(model, small.batch())
    total(losses).backward()
    assert losses['loss_global'] > 0


def test_detections_are_the_students():
    model = build_distiller(small.retinanet(), small.retinanet()).eval()
    data = small.batch(1)
    with torch.no_grad():
        ours = model.forward(return_loss=False, rescale=True, img=[data['img']],
                             img_metas=[data['img_metas']])
        plain = model.student.forward(return_loss=False, rescale=True, img=[data['img']],
                                      img_metas=[data['img_metas']])
    assert len(ours[0]) == small.NUM_CLASSES
    for one, other in zip(ours[0], plain[0]):
        assert (one == other).all()


REFUSALS = [
    (small.retinanet(num_classes=2), small.retinanet(), {}, '2 classes, student RetinaNet has 3'),
    (small.faster_rcnn(), small.retinanet(), dict(soft_label={}),
     'soft_label: a two-stage teacher'),
    (small.retinanet(octave_base_scale=2), small.retinanet(), dict(soft_label={}),
     'different anchors'),
    (small.fcos(), small.fcos(), dict(instances='positives'), 'instances="gt"'),
    (small.retinanet(), small.retinanet(), dict(soft_label='always'), 'soft_label = .always.'),
    (small.retinanet(), small.retinanet(), dict(instances='all'), 'instances = .all.'),
    (small.retinanet(), small.retinanet(), dict(soft_label=dict(heat=2)), 'heat.*temperature'),
    (small.retinanet(), small.retinanet(), dict(soft_label=dict(pair=2)), "unknown .*'pair'"),
    (small.retinanet(), small.retinanet(), dict(soft_label=dict(activation='relu')), 'relu'),
    (small.retinanet(), small.retinanet(), dict(soft_label=dict(temperature=0)),
     'soft_label.temperature = 0: must be positive'),
    (small.retinanet(), small.retinanet(), dict(local_knowledge=dict(level_reduction='max')),
     'level_reduction = .max.'),
    (small.retinanet(), small.retinanet(),
     dict(global_knowledge=None, local_knowledge=None, soft_label=None), 'nothing is left'),
    (small.retinanet(), small.retinanet(), dict(unknown=1), 'unknown'),
]


@pytest.mark.parametrize('teacher, student, settings, message', REFUSALS)
def test_refuses_with_the_reason(teacher, student, settings, message):
    knowledge = [dict(type='RobustDistillingModule', **settings)]
    with pytest.raises(ConfigError, match=message):
        build_detector(small.distiller(teacher, student, knowledge=knowledge))


@pytest.mark.parametrize('settings, message', [
    (dict(robust='no'), "RobustDistillingModule.robust = 'no': must be True or False"),
    (dict(start='half'), "RobustDistillingModule.start = 'half': must be a finite number"),
    (dict(global_knowledge='own'), "global_knowledge = 'own': must be a dict or None"),
    (dict(global_knowledge=dict(loss_weight='5')),
     "global_knowledge.loss_weight = '5': must be a finite number"),
    (dict(global_knowledge=dict(space='classes', num_cells=2.5)),
     'global_knowledge.num_cells = 2.5: must be a whole number'),
    (dict(local_knowledge=dict(levels=9)), 'levels = 9: must be a list of whole numbers or None'),
    (dict(local_knowledge=dict(levels='01')), "levels = '01': must be a list of whole numbers"),
    (dict(local_knowledge=dict(background_weight=-4)),
     'local_knowledge.background_weight = -4: must be at least 0'),
    (dict(soft_label=dict(temperature=float('nan'))), 'temperature = nan: must be a finite'),
])
def test_settings_of_another_type_are_refused(settings, message):
    knowledge = [dict(type='RobustDistillingModule', **settings)]
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(small.distiller(small.retinanet(), small.retinanet(), knowledge=knowledge))


@pytest.mark.parametrize('part, settings, message', [
    ('prototypes', 'on', "model.prototypes = 'on': must be a dict or None"),
    ('prototypes', dict(alpha='10'), "model.prototypes.alpha = '10': must be a finite number"),
    ('prototypes', dict(workers=True), 'workers = True: must be a whole number or None'),
    ('teacher', dict(graphs=-1), 'model.teacher.graphs = -1: must be a whole number from 0 on'),
    ('teacher', dict(checkpoint=5), 'model.teacher.checkpoint = 5: must be text or None'),
    ('teacher', dict(config=5), 'model.teacher.config = 5: must be text or a dict'),
    ('student', dict(overrides='a=1'), "model.student.overrides = 'a=1': must be a dict"),
])
def test_settings_of_other_parts_of_another_type_are_refused(part, settings, message):
    config = small.distiller(small.retinanet(), small.retinanet())
    config[part] = {**config[part], **settings} if isinstance(settings, dict) else settings
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(config)


@KNOWLEDGE.register_module()
class WantsLogits(Knowledge):
    """Needs logits and asks nothing of the pair, as a user's own method may."""

    needs = Needs(logits=True)

    def forward(self, step):
        return dict(loss_wanted=step.student.logits.sum() * 0)


@pytest.mark.parametrize('teacher, student, message', [
    (small.retinanet(octave_base_scale=2), small.retinanet(),
     'different anchors.*anchor_generator'),
    (small.fcos(), small.retinanet(), 'different anchors'),
    (small.retinanet(), small.faster_rcnn(), 'a one-stage teacher .* and a two-stage student'),
    (small.fcos(), small.fcos(), 'student FCOS gives no class logits'),
])
def test_refuses_logits_of_other_places_whatever_the_method_asks(teacher, student, message):
    with pytest.raises(ConfigError, match=f'model.knowledge: WantsLogits needs class logits: '
                                          f'.*{message}.*teach by methods that need none'):
        build(small.distiller(teacher, student, knowledge=[dict(type='WantsLogits')]))


@KNOWLEDGE.register_module()
class WantsProposals(Knowledge):
    """Likewise for the logits of all proposals."""

    needs = Needs(proposals=True)

    def forward(self, step):
        return dict(loss_wanted=step.student.proposal_logits.sum() * 0)


@pytest.mark.parametrize('teacher, student, message', [
    (small.retinanet(), small.retinanet(), 'teacher RetinaNet is one-stage'),
    (small.faster_rcnn(), small.retinanet(), 'student RetinaNet is one-stage'),
])
def test_refuses_logits_of_proposals_where_there_are_none(teacher, student, message):
    with pytest.raises(ConfigError, match=f'WantsProposals needs class logits of proposals: '
                                          f'{message}.*teach by methods that need none'):
        build(small.distiller(teacher, student, knowledge=[dict(type='WantsProposals')]))


@pytest.mark.parametrize('teacher, student', [
    (small.retinanet(24), small.retinanet()),
    (small.faster_rcnn(24), small.faster_rcnn()),
    (small.faster_rcnn(24), small.retinanet()),
])
def test_teachers_that_can_classify_the_positives_are_served(teacher, student):
    model = build_distiller(teacher, student, knowledge=[dict(type='WantsLogits')])
    _, step = model.observe(to_batch(**small.batch()))
    assert len(step.teacher.logits) == len(step.student.logits) == sum(map(len, step.boxes)) > 4


def test_anchors_of_other_strides_are_other_places():
    """The same anchors around every cell, but the teacher's cells lie twice as far apart."""
    pair = steps.pair()
    pair.require_same_places('key', 'advice')
    strides = tuple(2 * stride for stride in pair.strides)
    moved = dataclasses.replace(pair, teacher=dataclasses.replace(pair.teacher, strides=strides))
    with pytest.raises(ConfigError, match=r'key: .*different strides .*\(16, 32, 64\).*advice'):
        moved.require_same_places('key', 'advice')


def test_refuses_unknown_or_repeated_knowledge():
    with pytest.raises(ConfigError, match='RobustDistillingModule'):
        build_detector(small.distiller(small.retinanet(), small.retinanet(),
                                       knowledge=[dict(type='Telepathy')]))
    model = build_distiller(small.retinanet(), small.retinanet(),
                            knowledge=[dict(type='RobustDistillingModule')] * 2)
    with pytest.raises(ConfigError, match='loss_global'):
        losses_of(model, small.batch())


def test_refuses_strides_that_do_not_meet():
    student = small.retinanet()
    student['neck'].update(start_level=3, num_outs=2)
    student['bbox_head']['anchor_generator']['strides'] = [32, 64]
    teacher = small.retinanet()
    teacher['neck'].update(start_level=1, num_outs=2, end_level=2, add_extra_convs=False)
    teacher['bbox_head']['anchor_generator']['strides'] = [8, 16]
    with pytest.raises(ConfigError, match=r'\(8, 16\).*\(32, 64\)'):
        build_detector(small.distiller(teacher, student))


def test_training_without_prototypes_says_so():
    model = build(small.distiller(small.retinanet(), small.retinanet()))
    with pytest.raises(ConfigError, match='PrototypeHook'):
        losses_of(model, small.batch())


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_half_fitting_checkpoint_stops(role, tmp_path):
    config = small.distiller(small.retinanet(), small.retinanet())
    weights = build(small.retinanet(num_classes=5)).state_dict()
    path = tmp_path / 'other.pth'
    torch.save(dict(meta={}, state_dict=weights), path)
    config[role]['checkpoint'] = str(path)
    with pytest.raises(CheckpointError, match='retina_cls'):
        build(config)


def test_checkpoint_paths_and_keys_are_checked():
    config = small.distiller(small.retinanet(), small.retinanet())
    del config['teacher']['checkpoint']
    with pytest.raises(ConfigError, match='model.teacher needs `checkpoint`'):
        build_detector(copy.deepcopy(config))
    config['teacher']['checkpoint'] = 'nowhere.pth'
    with pytest.raises(CheckpointError, match='model.teacher.checkpoint.*nowhere.pth'):
        build_detector(copy.deepcopy(config))
    config['student']['config'] = 'nowhere.py'
    with pytest.raises(ConfigError, match='model.student.config.*nowhere.py'):
        build_detector(copy.deepcopy(config))
    config['student']['config'] = 'mmdet::retinanet/nowhere.py'
    with pytest.raises(ConfigError, match='looked in'):
        build_detector(copy.deepcopy(config))
    config['student'] = dict(config=small.retinanet(), chekpoint='x')
    with pytest.raises(ConfigError, match='chekpoint'):
        build_detector(copy.deepcopy(config))


def test_configs_of_mmdetection_are_found_and_overridden():
    from gkd.detectors.source import DetectorSource
    source = DetectorSource.parse(
        dict(config='mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', checkpoint='x.pth',
             overrides={'bbox_head.num_classes': 7}), 'model.student')
    config = source.model_config()
    assert config.type == 'RetinaNet'
    assert config.bbox_head.num_classes == 7
    # Replaced by the checkpoint, and would need a network.
    assert config.backbone.init_cfg is None
    nothing = DetectorSource.parse(dict(config=small.retinanet(), overrides=None), 'model.student')
    assert nothing.model_config().bbox_head.num_classes == small.NUM_CLASSES


@pytest.mark.parametrize('family', small.FAMILIES)
def test_teacher_with_more_classes_teaches_those_that_the_student_has(family, tmp_path):
    detector = small.FAMILIES[family]
    path = tmp_path / 'teacher.pth'
    names = ('cat', 'blue', 'dog', 'red', 'green')
    torch.save(dict(meta=dict(CLASSES=names),
                    state_dict=build(detector(24, num_classes=5)).state_dict()), path)
    config = small.distiller(detector(24, num_classes=5), detector(), knowledge=[
        dict(type='RobustDistillingModule'), dict(type='PFI')])  # which reads an RPN's logits
    config['teacher']['checkpoint'] = str(path)
    model = build(config)
    model.bank = small.random_bank(model.pair)
    with pytest.raises(ConfigError, match='not known which they are'):
        losses_of(model, small.batch())
    with pytest.raises(ConfigError, match='but not violet, which data.train has'):
        model.choose_classes(('red', 'violet', 'blue'), 'data.train')
    for names in ((), ('green',)):  # MMEngine's own runner compares their number with no head
        with pytest.raises(ConfigError, match=f'names {len(names)} classes, the student det'):
            model.choose_classes(names, 'data.train')
    model.choose_classes(('red', 'green', 'blue'), 'data.train')
    assert RDM_TERMS < losses_of(model, small.batch()).keys()
    _, step = model.observe(to_batch(**small.batch()))
    logits = torch.arange(6.0).expand(2, 6)
    others = DetectorOutputs((), stage_logits=[logits], proposal_logits=logits)
    model.keep_students_classes(others)
    for found in (*others.stage_logits, others.proposal_logits):
        assert found[1].tolist()[:3] == [3, 4, 1]
    if family == 'one_stage':  # a map of one cell with two anchors
        part = DetectorOutputs((), score_maps=(torch.arange(10.0).reshape(1, 10, 1, 1),))
        model.keep_students_classes(part)
        assert part.score_maps[0].flatten().tolist() == [3, 4, 1, 8, 9, 6]
    model.teacher_columns = torch.arange(5 if family == 'one_stage' else 6)
    whole = model.teacher_step(step.images, step).logits
    background = [] if family == 'one_stage' else [5]
    torch.testing.assert_close(step.teacher.logits, whole[:, [3, 4, 1, *background]])
    assert saved_weights(model).keys() == model.state_dict().keys()
    assert model.to('meta').teacher_columns.device.type == 'meta'


def test_a_teacher_with_more_classes_needs_no_names_where_none_are_compared():
    config = small.distiller(small.retinanet(24, num_classes=5), small.retinanet(),
                             knowledge=[dict(type='PKD')])
    assert losses_of(build(config), small.batch())['loss_pkd'] > 0


def test_a_teacher_with_more_classes_needs_their_names(tmp_path):
    config = small.distiller(small.retinanet(24, num_classes=4), small.retinanet())
    with pytest.raises(ConfigError, match='has 4 classes, data.train has 3, .*teacher.classes'):
        build(config).choose_classes(('red', 'green', 'blue'), 'data.train')
    named = copy.deepcopy(config)
    named['teacher']['classes'] = ['blue', 'grey', 'red', 'green']
    model = build(named)
    model.choose_classes(('red', 'green', 'blue'), 'data.train')
    assert model.teacher_columns.tolist() == [2, 3, 0]
    # The student that trains alone needs no names, as it is taught nothing.
    build(dict(config, knowledge=[])).choose_classes(('red', 'green', 'blue'), 'data.train')
    path = tmp_path / 'teacher.pth'
    torch.save(dict(meta=dict(CLASSES=('red', 'green', 'blue', 'grey')),
                    state_dict=model.teacher.state_dict()), path)
    named['teacher']['checkpoint'] = str(path)
    with pytest.raises(ConfigError, match='classes are blue, grey, red, green, and .* was trained '
                                          'on red, green, blue, grey'):
        build(named).init_weights()
    named['teacher']['classes'] = 'red'
    with pytest.raises(ConfigError, match="model.teacher.classes = 'red': must be a list"):
        build(named)


def test_detectors_of_grey_images_pair_with_each_other_only():
    grey = small.retinanet()
    grey['backbone']['in_channels'] = 1
    model = build_distiller(grey, grey)
    assert model.pair.student.image_channels == 1 and model.pair.student.samples_positives
    data = small.batch()
    data['img'] = data['img'][:, :1]
    assert RDM_TERMS < losses_of(model, data).keys()
    with pytest.raises(ConfigError, match='teacher RetinaNet reads images of 1 channels'):
        build(small.distiller(grey, small.retinanet()))


@pytest.mark.parametrize('family', small.FAMILIES)
def test_looking_at_a_student_changes_nothing_of_it(family):
    torch.manual_seed(3)
    config = small.FAMILIES[family]()
    if family == 'one_stage':
        config['bbox_head']['norm_cfg'] = dict(type='BN')
    detector = build_detector(Config(dict(model=config)).model)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    modes = [module.training for module in detector.modules()]
    info = inspect_detector(detector, 'student')
    assert info.samples_positives and info.ground_truth == ()
    assert info.pools_maps and info.has_class_layers
    for name, tensor in detector.state_dict().items():  # such as statistics of batch norm
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    assert [module.training for module in detector.modules()] == modes
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_positives_that_are_not_those_trained_on_are_not_taken(monkeypatch):
    """A head that samples other boxes than its anchors is taught at the ground truth."""
    detector = build_detector(Config(dict(model=small.retinanet())).model)
    assert inspect_detector(detector, 'student').samples_positives
    grid = detector.bbox_head.prior_generator.grid_priors
    monkeypatch.setattr(
        detector.bbox_head, 'get_anchors', lambda sizes, metas, device: (
            [[level + 3 for level in grid(sizes, device=device)] for _ in metas],
            [detector.bbox_head.prior_generator.valid_flags(sizes, meta['pad_shape'], device)
             for meta in metas]))
    info = inspect_detector(detector, 'student')
    assert not info.samples_positives and not info.classifies_boxes


def test_students_that_normalise_over_processes_are_observed_without_a_gpu(caplog):
    config = small.retinanet()
    config['backbone']['norm_cfg'] = dict(type='SyncBN', requires_grad=True)
    detector = build_detector(Config(dict(model=config)).model)
    info = inspect_detector(detector, 'student')
    assert info.samples_positives
    assert type(detector.backbone.bn1).__name__ == 'SyncBatchNorm' and not caplog.text


def test_why_a_trial_step_failed_is_said(caplog):
    detector = build_detector(Config(dict(model=small.retinanet())).model)

    def fail(*args, **kwargs):
        raise RuntimeError('no depth maps')

    detector.bbox_head.loss = fail
    with caplog.at_level('WARNING', 'mmdet'):
        logging.getLogger('mmdet').addHandler(caplog.handler)
        info = inspect_detector(detector, 'student')
        logging.getLogger('mmdet').removeHandler(caplog.handler)
    assert not info.samples_positives
    assert 'trial of a training step failed' in caplog.text and 'no depth maps' in caplog.text


def test_a_teacher_without_checkpoint_gets_its_initial_weights():
    teacher = small.retinanet()
    teacher['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='no/such.pth')
    teacher['bbox_head']['init_cfg'] = dict(type='Constant', layer='Conv2d', val=0.5)
    model = build(small.distiller(teacher, small.retinanet()))
    state = torch.get_rng_state()
    model.init_weights()
    assert (model.teacher.bbox_head.retina_cls.weight == 0.5).all()
    plain = build(small.retinanet())
    torch.set_rng_state(state)
    plain.init_weights()
    for name, tensor in plain.state_dict().items():  # the student's random numbers stay the same
        assert torch.equal(model.student.state_dict()[name], tensor)
