"""Detectors of MMDetection's zoo as teachers and students of themselves and of others."""

from types import SimpleNamespace

import pytest
import torch
from helpers import disagreeing_heads
from helpers.resized import assert_teacher_sees_the_resized

from gkd.detectors import teacher, trial_step, two_stage
from gkd.detectors.config_files import find_file
from gkd.detectors.inspection import inspect_detector
from gkd.detectors.places import centres
from gkd.detectors.roi_heads import classify
from gkd.detectors.source import DetectorSource, without_checkpoints
from gkd.detectors.step import recorded
from gkd.detectors.teacher import Teacher
from gkd.errors import ConfigError
from gkd.frameworks import Config, ConfigDict, bbox2roi, build_detector
from gkd.knowledge.instances import Instances
from gkd.matching import check_heads_agree, check_num_classes, num_classes_of
from gkd.running.data import check_ground_truth
from gkd.running.train import initial_model
from studies import coverage, outcomes, small_models
from studies.zoo import PAIRS, SELF_PAIRS

POSITIVES, TRUTH = 'positives', 'gt'
# Config, at what it is taught, whether by soft labels, how many of the ten other methods work.
SAMPLE = [
    ('atss/atss_r50_fpn_1x_coco', POSITIVES, True),
    ('paa/paa_r50_fpn_1x_coco', POSITIVES, True),
    ('fcos/fcos_r50_caffe_fpn_gn-head_1x_coco', TRUTH, True),
    ('free_anchor/retinanet_free_anchor_r50_fpn_1x_coco', TRUTH, False),
    ('yolox/yolox_tiny_8x8_300e_coco', TRUTH, True),
    ('cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco', POSITIVES, True),
]
MORE = [
    ('faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco', POSITIVES, True),
    ('fast_rcnn/fast_rcnn_r50_fpn_1x_coco', POSITIVES, True),
    ('groie/faster_rcnn_r50_fpn_groie_1x_coco', POSITIVES, True),
    ('pisa/pisa_faster_rcnn_r50_fpn_1x_coco', POSITIVES, True),
    ('sabl/sabl_retinanet_r50_fpn_1x_coco', TRUTH, True),
    ('sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco', TRUTH, False),
    ('mask_rcnn/mask_rcnn_r50_fpn_1x_coco', POSITIVES, True),
    ('ld/ld_r18_gflv1_r101_fpn_coco_1x', POSITIVES, True),
    ('detr/detr_r50_8x2_150e_coco', TRUTH, False),
    ('yolo/yolov3_mobilenetv2_320_300e_coco', TRUTH, False),
    ('ssd/ssdlite_mobilenetv2_scratch_600e_coco', POSITIVES, True),
    # With operators that mmcv-full compiles.
    ('dcnv2/faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco', POSITIVES, True),
    ('tood/tood_r50_fpn_1x_coco', POSITIVES, True),
    ('reppoints/reppoints_moment_r50_fpn_1x_coco', TRUTH, True),
]
# Their heads have no layers that read classes from maps alone, or other ones for every level.
WITHOUT_CLASS_SPACE = {
    'yolox/yolox_tiny_8x8_300e_coco', 'faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco',
    'sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco', 'detr/detr_r50_8x2_150e_coco',
    'yolo/yolov3_mobilenetv2_320_300e_coco', 'ssd/ssdlite_mobilenetv2_scratch_600e_coco',
    'tood/tood_r50_fpn_1x_coco'}


pytestmark = pytest.mark.usefixtures('short_backbones')


def check(name, instances, soft):
    outcome = coverage.check(*outcomes.pair_of(name))
    assert (outcome.verdict, outcome.message) == ('works', '')
    assert outcome.own_losses_equal and outcome.detects
    assert (outcome.instances, 'loss_soft' in outcome.teaches) == (instances, soft)
    assert bool(outcome.left_out) != soft
    assert {'loss_global', 'loss_local_fg', 'loss_local_bg'} <= set(outcome.teaches)
    reason = 'no layers that read classes' if name in WITHOUT_CLASS_SPACE else ''
    assert reason in outcome.class_space and bool(reason) == bool(outcome.class_space)
    assert outcome.bfloat16 == ''
    # What compares maps alone works everywhere.
    assert not any(outcome.methods[method] for method in ('CWD', 'FGD', 'MGD', 'PKD'))


@pytest.mark.parametrize('name, instances, soft', SAMPLE)
def test_detector_teaches_and_is_taught(name, instances, soft):
    check(name, instances, soft)


@pytest.mark.slow
@pytest.mark.parametrize('name, instances, soft', MORE)
def test_more_detectors_teach_and_are_taught(name, instances, soft):
    check(name, instances, soft)


@pytest.mark.parametrize('name', [
    'detr/detr_r50_8x2_150e_coco',  # its head is given more than maps
    'sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco',  # its RPN has no forward
    'ssd/ssd300_coco'])  # for images of one size
def test_a_teacher_computes_in_another_precision(name):
    assert Teacher(build_detector(small_models.small_config(name)),
                   'bfloat16').dtype == torch.bfloat16


def test_a_teacher_that_falls_back_to_full_precision_does_not_work_in_bfloat16(monkeypatch):
    def refuse(*args):
        raise RuntimeError('not implemented for BFloat16')

    monkeypatch.setattr(teacher, 'fast_copy', refuse)
    outcome = coverage.check(*['retinanet/retinanet_r18_fpn_1x_coco'] * 2)
    assert outcome.verdict == 'works' and 'falls back' in outcome.bfloat16
    *_, low, methods, notes, _ = map(str.strip, outcomes.row(outcome).split('|'))
    assert low == '' and 'bfloat16: the teacher falls back to full precision' in notes


def test_a_step_that_fails_with_a_teacher_in_bfloat16_is_a_fault(monkeypatch):
    def fail(detector):
        raise TypeError('no float32')

    monkeypatch.setattr(Teacher, 'check', fail)
    outcome = coverage.check(*['retinanet/retinanet_r18_fpn_1x_coco'] * 2)
    assert outcome.verdict == 'fault' and outcome.message.startswith('bfloat16: FAULT TypeError')


def test_teacher_sees_the_batch_that_the_student_has_resized():
    config = small_models.small_config('yolox/yolox_tiny_8x8_300e_coco')
    model = coverage.build(coverage.distiller(config, config))
    batch = coverage.batch_of(model)
    assert_teacher_sees_the_resized(model, batch)


@pytest.mark.parametrize('name', ['fcos/fcos_r50_caffe_fpn_gn-head_1x_coco',
                                  'foveabox/fovea_r50_fpn_4x4_1x_coco',
                                  'reppoints/reppoints_moment_r50_fpn_1x_coco',
                                  'yolox/yolox_tiny_8x8_300e_coco'])
def test_places_are_those_that_the_head_trains_as_objects(name):
    config = small_models.small_config(name)
    model = coverage.build(coverage.distiller(config, config))
    head, calls = model.student.bbox_head, []
    loss_cls = head.loss_cls.forward
    head.loss_cls.forward = lambda *args, **kwargs: calls.append(args) or loss_cls(*args, **kwargs)
    step = coverage.observed(model, coverage.batch_of(model))
    objects = step.place_labels < model.pair.num_classes
    logits, labels = step.student.dense.logits[objects], step.place_labels[objects]
    trained, targets = (torch.cat(part) for part in list(zip(*calls))[:2])  # RepPoints: by level
    if targets.dim() == 2:  # YOLOX: of each place that is an object as many numbers as classes
        classes, kept = targets.argmax(dim=1), targets.sum(dim=1) > 0
    else:
        classes, kept = targets, targets < model.pair.num_classes
    trained, classes = trained[kept], classes[kept]
    assert len(trained) == len(logits) > 0
    rows = [sorted(torch.cat([scores, classes[:, None]], dim=1).tolist())
            for scores, classes in ((trained, classes), (logits, labels))]
    assert rows[0] == rows[1]

    # Their mean divergence, each weighed as the smallest box of its class around it.
    kind = model.knowledge[0]
    plain = kind.soft_label(logits, step.teacher.dense.logits[objects], torch.ones(len(logits)))
    kind.robust = False
    ones = torch.ones(sum(map(len, step.gt_boxes)))
    given = Instances.of(step.gt_boxes), torch.cat(step.gt_labels)
    taught = kind.teach_places(step, *given, ones)
    torch.testing.assert_close(taught, plain)
    halved = kind.teach_places(step, *given, torch.where(given[1] == 0, 0.0, 1.0))
    points = centres([level.shape[2:] for level in step.student.maps], step.strides, 'cpu')
    held = torch.stack([torch.stack([  # by a box of its own class
        ((box[:2] <= points) & (points <= box[2:])).all(dim=1) & (places == label)
        for box, label in zip(boxes, classes)]).any(dim=0)
        for boxes, classes, places in zip(step.gt_boxes, step.gt_labels, step.place_labels)])
    weights = torch.where((labels == 0) & held[objects], 0.0, 1.0)
    # RepPoints trains few places, here none whose centre is in a box of the first class.
    assert weights.any() and ((weights == 0).any() or 'reppoints' in name)
    torch.testing.assert_close(halved, kind.soft_label(
        logits, step.teacher.dense.logits[objects], weights))

    # A head may train a place as an object that no box is around: that one counts in full.
    around = torch.stack([torch.stack([
        ((box[:2] <= points) & (points <= box[2:])).all(dim=1) for box in boxes]).any(dim=0)
        for boxes in step.gt_boxes])
    step.place_labels = torch.where(around, model.pair.num_classes, step.place_labels)
    alone = tuple((~around).nonzero()[0])
    step.place_labels[alone] = 0
    objects = step.place_labels < model.pair.num_classes
    torch.testing.assert_close(kind.teach_places(step, *given, 0 * ones), kind.soft_label(
        step.student.dense.logits[objects], step.teacher.dense.logits[objects],
        torch.ones(int(objects.sum()))))


def test_each_stage_of_a_cascade_is_taught_by_the_same_stage():
    config = small_models.small_config('cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco')
    model = coverage.build(coverage.distiller(config, config))
    kind = model.knowledge[0]
    kind.robust = False
    heads, seen = model.teacher.roi_head.bbox_head, []
    for number, head in enumerate(heads):
        torch.nn.init.normal_(head.fc_cls.weight)  # untrained heads score everything alike
        head.register_forward_hook(lambda _, inputs, output, number=number:
                                   seen.append((number, output[0])))
    losses = coverage.step(model, coverage.batch_of(model))
    step = coverage.observed(model, coverage.batch_of(model))
    assert [number for number, _ in seen] == [0, 1, 2] * 2
    later = [*zip(step.student.stage_logits, step.teacher.stage_logits)]
    assert len(later) == len(step.stages) == 2
    for (_, logits), stage, (own, target) in zip(seen[-2:], step.stages, later):
        assert torch.equal(logits, target)
        assert len(logits) == len(own) == len(stage.labels) == sum(map(len, stage.boxes))

    def loss(student, teacher):
        return kind.soft_label(student, teacher, torch.ones(len(student)))['loss_soft']

    first, second, third = [loss(step.student.logits, step.teacher.logits),
                            *(loss(*logits) for logits in later)]
    taught = kind(step)['loss_soft']
    torch.testing.assert_close(taught, first + 0.5 * second + 0.25 * third)
    assert min(first, second, third) > 1e-3 and 'loss_soft' in losses


def test_a_stage_is_recorded_at_its_own_positives():
    """Of each image these come first."""
    sampled = [SimpleNamespace(pos_bboxes=torch.zeros(positives, 4), bboxes=torch.zeros(all_, 4),
                               pos_gt_labels=torch.zeros(positives, dtype=torch.long))
               for positives, all_ in ((1, 3), (2, 4))]
    step = SimpleNamespace(stages=[], student=SimpleNamespace(stage_logits=[]))
    two_stage.add_stage(step, sampled, dict(cls_score=torch.arange(7.0)[:, None]), 0.5)
    assert step.student.stage_logits[0].flatten().tolist() == [0, 3, 4]
    assert step.stages[0].loss_weight == 0.5 and len(step.stages[0].labels) == 3


def test_stages_whose_samplers_run_the_heads_themselves():
    """OHEM samples by losses."""
    config = small_models.small_config('cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco')
    for stage in config.train_cfg.rcnn:
        stage.sampler.update(type='OHEMSampler')
    model = coverage.build(coverage.distiller(config, config))
    with recorded(model.student.roi_head, '_bbox_forward') as calls:
        step = coverage.observed(model, coverage.batch_of(model))
    trained = {call.args[0]: call.result['cls_score'] for call in calls}
    assert torch.equal(step.student.proposal_logits, trained[0])
    assert [len(logits) for logits in step.student.stage_logits] == \
        [len(stage.labels) for stage in step.stages]


@pytest.mark.parametrize('name', ['htc/htc_r50_fpn_1x_coco', 'scnet/scnet_r50_fpn_1x_coco'])
def test_a_head_that_adds_features_of_the_whole_image(name):
    """It classifies boxes as in its training. HTC samples boxes for masks once more."""
    config = small_models.small_config(name)
    model = coverage.build(coverage.distiller(config, config))
    student = model.student
    with recorded(student, 'extract_feat') as maps, \
            recorded(student.roi_head, '_bbox_forward') as calls:
        step = coverage.observed(model, coverage.batch_of(model))
    rois = bbox2roi(step.proposals)
    first = [call for call in calls if call.args[0] == 0][-1]
    assert torch.equal(first.args[2], rois)
    outputs = [classify(student.roi_head, maps[-1].result, rois, stage)['cls_score']
               for stage in (0, 2, 7)]  # a teacher may have fewer stages than its student
    torch.testing.assert_close(outputs[0], step.student.proposal_logits)
    assert torch.equal(outputs[1], outputs[2]) and not torch.equal(outputs[0], outputs[1])


def test_paa_records_what_it_trains():
    config = small_models.small_config('paa/paa_r50_fpn_1x_coco')
    model = coverage.build(coverage.distiller(config, config))
    head, counts = model.student.bbox_head, []
    reassign = head.paa_reassign
    head.paa_reassign = lambda *args: counts.append(reassign(*args)) or counts[-1]
    step = coverage.observed(model, coverage.batch_of(model))
    trained = [int((labels < head.num_classes).sum()) for labels, *_ in counts]
    assert [len(boxes) for boxes in step.boxes] == trained and sum(trained) > 0


def test_a_trial_begins_with_the_learned_proposals_of_a_training(monkeypatch):
    """As they are built, some have a width below 0, of which no mask can be pooled."""
    student = build_detector(small_models.small_config('queryinst/queryinst_r50_fpn_1x_coco'))
    boxes = student.rpn_head.init_proposal_bboxes.weight.data
    boxes[:] = built = torch.tensor([0.5, 0.5, -1, 1])
    said = []
    monkeypatch.setattr(trial_step, 'logger', lambda: SimpleNamespace(warning=said.append))
    inspect_detector(student, 'student')
    assert not said and torch.equal(boxes, built.expand_as(boxes))


def test_ddod_records_the_positives_of_its_classes():
    """It assigns anchors for the boxes once more."""
    config = small_models.small_config('ddod/ddod_r50_fpn_1x_coco')
    model = coverage.build(coverage.distiller(config, config))
    head, classes = model.student.bbox_head, model.pair.num_classes
    with recorded(head, 'get_cls_targets') as of_classes, \
            recorded(head, 'get_reg_targets') as of_boxes:
        step = coverage.observed(model, coverage.batch_of(model))
    labels, others = (torch.cat([level.flatten() for level in calls[0].result[1]])
                      for calls in (of_classes, of_boxes))
    assert torch.equal(labels[labels < classes].sort()[0], step.labels.sort()[0])
    assert (others < classes).sum() != len(step.labels)


@pytest.mark.parametrize('name, reason', [
    ('rpn/rpn_r50_fpn_1x_coco', 'an RPN alone is a part of a detector'),
    ('tridentnet/tridentnet_r50_caffe_1x_coco', 'hold 6 images for 2'),
    ('convnext/mask_rcnn_convnext-t_p4_w7_fpn_fp16_ms-crop_3x_coco', 'pip install mmcls'),
    ('rfnext/rfnext_search_mask_rcnn_pvtv2-b0_fpn_1x_coco', 'has an RFSearchHook'),
])
def test_refusals_name_the_reason(name, reason):
    outcome = coverage.check(name, name)
    assert outcome.verdict == 'refused' and reason in outcome.message


def test_masks_that_the_pipeline_does_not_collect_are_named():
    config = small_models.small_config('mask_rcnn/mask_rcnn_r50_fpn_1x_coco')
    model = coverage.build(coverage.distiller(config, config))
    keys = ['img', 'gt_bboxes', 'gt_labels']
    data = dict(type='RepeatDataset', dataset=dict(pipeline=[dict(type='Collect', keys=keys)]))
    with pytest.raises(ConfigError, match='data.train.pipeline.*`gt_masks`.*with_mask=True'):
        check_ground_truth(model, data, 'data.train')
    with pytest.raises(ConfigError, match='`gt_masks`'):
        check_ground_truth(model, [data, data], 'data.train')
    with pytest.raises(ConfigError, match='pipeline: MaskRCNN trains on `gt_masks`'):
        initial_model(Config(dict(model=config, data=dict(train=data), seed=0)),
                      SimpleNamespace(CLASSES=range(num_classes_of(build_detector(config)))))
    keys.append('gt_masks')
    check_ground_truth(model, data, 'data.train')
    check_ground_truth(build_detector(config), data, 'data.train')


@pytest.mark.parametrize('name, regions', [
    ('mask2former/mask2former_r50_lsj_8x2_50e_coco', 0), ('solo/solo_r50_fpn_1x_coco', 0),
    ('maskformer/maskformer_r50_mstrain_16x1_75e_coco', 53),
    ('panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco', 53), ('yolact/yolact_r50_1x8_coco', 0),
    ('cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco', 0)])
def test_classes_are_counted_by_whichever_head_tells_them(name, regions):
    detector = build_detector(small_models.small_config(name))
    assert num_classes_of(detector) == 80
    check_num_classes(detector, ['red'] * (80 + regions), 'data.train')
    said = f'detects 80 classes{" and 53 of regions" * bool(regions)}, data.train has 1 '
    with pytest.raises(ConfigError, match=said):
        check_num_classes(detector, ['red'], 'data.train')


def test_a_segmenter_whose_parts_count_other_classes_is_named():
    disagreeing_heads.assert_segmenter_is_named('mask2former/mask2former_r50_lsj_8x2_50e_coco')


def test_a_stage_of_a_cascade_that_counts_other_classes_is_named():
    disagreeing_heads.assert_stage_is_named('cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco')


def test_a_head_of_ones_own_may_tell_other_classes_apart():
    detector = build_detector(small_models.small_config('retinanet/retinanet_r50_fpn_1x_coco'))
    detector.colours = torch.nn.Linear(4, 7)
    detector.colours.num_classes = 7
    check_heads_agree(detector)


def test_necks_of_several_parts_are_made_narrow():
    assert small_models.small_config('libra_rcnn/libra_retinanet_r50_fpn_1x_coco').neck[0] == dict(
        type='FPN', in_channels=[32, 64, 128, 256], out_channels=32, start_level=1, num_outs=5,
        add_extra_convs='on_input')


def test_the_teacher_of_a_detector_that_distils_by_itself_is_found(tmp_path, monkeypatch):
    """Its config is named from the folder of MMDetection's source."""
    monkeypatch.chdir(tmp_path)
    source = dict(config='mmdet::ld/ld_r18_gflv1_r101_fpn_coco_1x.py')
    named = DetectorSource.parse(source, 'config').model_config().teacher_config
    assert named == find_file('mmdet::gfl/gfl_r101_fpn_mstrain_2x_coco.py')
    own = tmp_path / 'configs/gfl/gfl_r101_fpn_mstrain_2x_coco.py'
    own.parent.mkdir(parents=True)
    own.touch()
    named = DetectorSource.parse(source, 'config').model_config().teacher_config
    assert named == 'configs/gfl/gfl_r101_fpn_mstrain_2x_coco.py'


def test_nothing_is_downloaded_for_a_detector_without_checkpoints():
    """LD and LAD name one of a teacher of their own."""
    student = dict(config='mmdet::lad/lad_r50_paa_r101_fpn_coco_1x.py')
    assert DetectorSource.parse(student, 'config').model_config().teacher_ckpt
    small = dict(config=dict(type='RetinaNet'), checkpoint='retinanet.pth')
    model = ConfigDict(type='Distiller', teacher=small, student=student)
    changed = without_checkpoints(model)
    own = DetectorSource.parse(changed.student, 'model.student').model_config()
    assert own.teacher_ckpt is None and own.type == 'LAD'
    assert changed.teacher == dict(small, checkpoint=None) and model.teacher == small
    plain = DetectorSource.parse(student, 'config').model_config()
    assert without_checkpoints(plain).teacher_ckpt is None and plain.teacher_ckpt


def test_lists_are_of_configs_that_there_are():
    names = {*SELF_PAIRS, *(name for pair in PAIRS for name in pair)}
    assert len(SELF_PAIRS) == 131 and len(PAIRS) == 57
    assert [name for name in names if not find_file(f'mmdet::{name}.py')] == []


def test_a_crash_is_an_outcome(monkeypatch):
    import os
    monkeypatch.setattr(coverage, 'check', lambda *names: os._exit(139))
    outcome = coverage.check_apart('some/teacher', 'some/student')
    assert outcome.verdict == 'fault' and 'ended with status 139' in outcome.message
