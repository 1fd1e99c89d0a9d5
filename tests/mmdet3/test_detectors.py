"""Detectors of MMDetection 3's zoo as teachers and students of themselves and of others."""

from importlib.util import find_spec

import pytest
import torch
from helpers import disagreeing_heads
from helpers.resized import assert_teacher_sees_the_resized
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from gkd.compat.weights import load_strictly
from gkd.detectors import trial_step
from gkd.detectors.config_files import find_file
from gkd.detectors.inspection import inspect_detector
from gkd.detectors.teacher import Teacher
from gkd.errors import CheckpointError, ConfigError
from gkd.frameworks import build_detector, student_losses
from gkd.planning.cost import noise
from studies import coverage, outcomes, small_models, zoo
from studies.zoo_mmdet3 import ADDED, ADDED_PAIRS, PAIRS, RENAMED, SELF_PAIRS

POSITIVES, TRUTH = 'positives', 'gt'
# A pair, at what the student is taught, whether by soft labels and in the class space.
SAMPLE = [
    ('retinanet/retinanet_r18_fpn_1x_coco', POSITIVES, True, True),
    ('yolox/yolox_tiny_8xb8-300e_coco', TRUTH, True, False),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco', TRUTH, True, False),
    ('centernet/centernet_r18_8xb16-crop512-140e_coco', TRUTH, False, False),
    ('detr/detr_r50_8xb2-150e_coco -> retinanet/retinanet_r18_fpn_1x_coco', POSITIVES, False,
     False),
    ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco -> faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
     POSITIVES, True, True),
]
MORE = [
    ('detr/detr_r50_8xb2-150e_coco', TRUTH, False, False),
    ('tood/tood_r50_fpn_1x_coco', POSITIVES, True, False),
    ('htc/htc_r50_fpn_1x_coco', POSITIVES, True, False),
    ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco', POSITIVES, True, True),
    ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', POSITIVES, True, True),
    ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco', POSITIVES, True, False),
    ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco', TRUTH, True, False),
    ('mask2former/mask2former_r50_8xb2-lsj-50e_coco', TRUTH, False, False),
    pytest.param('boxinst/boxinst_r50_fpn_ms-90k_coco', TRUTH, True, True,
                 marks=pytest.mark.skipif(find_spec('skimage') is None, reason='no skimage')),
]

pytestmark = pytest.mark.usefixtures('short_backbones')


def check(name, instances, soft, class_space):
    outcome = coverage.check(*outcomes.pair_of(name))
    assert (outcome.verdict, outcome.message) == ('works', '')
    assert outcome.own_losses_equal and outcome.detects
    assert (outcome.instances, 'loss_soft' in outcome.teaches) == (instances, soft)
    assert bool(outcome.left_out) != soft
    assert {'loss_global', 'loss_local_fg', 'loss_local_bg'} <= set(outcome.teaches)
    reason = '' if class_space else 'no layers that read classes'
    assert reason in outcome.class_space and bool(reason) == bool(outcome.class_space)
    assert outcome.bfloat16 == ''
    # What compares maps alone works everywhere.
    assert not any(outcome.methods[method] for method in ('CWD', 'FGD', 'MGD', 'PKD'))


@pytest.mark.parametrize('name, instances, soft, class_space', SAMPLE)
def test_detector_teaches_and_is_taught(name, instances, soft, class_space):
    check(name, instances, soft, class_space)


@pytest.mark.slow
@pytest.mark.parametrize('name, instances, soft, class_space', MORE)
def test_more_detectors_teach_and_are_taught(name, instances, soft, class_space):
    check(name, instances, soft, class_space)


def test_a_teacher_whose_head_is_given_no_maps_computes_in_another_precision():
    detector = build_detector(small_models.small_config('detr/detr_r50_8xb2-150e_coco'))
    assert Teacher(detector, 'bfloat16').dtype == torch.bfloat16


@pytest.mark.parametrize('name, verdict, reason', [
    ('rpn/rpn_r50_fpn_1x_coco', 'refused', 'an RPN alone is a part of a detector'),
    ('soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco', 'refused',
     r'teacher SoftTeacher holds a detector \(FasterRCNN, its `student`\) and is none itself'),
    ('qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval', 'refused',
     r'QDTrack holds a detector \(FasterRCNN, its `detector`\)'),
    ('mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019', 'refused',
     'Mask2FormerVideo has no head .* only a detector can teach or be taught'),
    ('glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco', 'refused',
     'model.student cannot be built: RuntimeError: transformers is not installed'),
    ('cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco', 'refused',
     "model.student cannot be built: TypeError: .*'num_classes'"),
    ('convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', 'refused',
     'pip install mmpretrain'),
    ('rfnext/rfnext_search_mask_rcnn_pvtv2-b0_fpn_1x_coco', 'absent', 'MMDetection 3.* ships no'),
])
def test_refusals_name_the_reason(name, verdict, reason):
    outcome = coverage.check(name, name)
    assert outcome.verdict == verdict
    with pytest.raises(ConfigError, match=reason):
        raise ConfigError(outcome.message)


def test_teacher_sees_the_batch_that_the_preprocessor_has_resized():
    config = small_models.small_config('yolox/yolox_tiny_8xb8-300e_coco')
    model = coverage.build(coverage.distiller(config, config))
    batch = coverage.batch_of(model)
    assert batch['inputs'][0].dtype == torch.uint8  # not normalised, not in a batch yet
    assert_teacher_sees_the_resized(model, batch)


def test_a_head_of_ssd_detects():
    head = MODELS.build(dict(
        type='SSDHead', in_channels=(4, 4), num_classes=2, anchor_generator=dict(
            type='SSDAnchorGenerator', scale_major=False, strides=[32, 64], ratios=([2], [2]),
            min_sizes=[20, 40], max_sizes=[40, 60]),
        test_cfg=ConfigDict(nms=dict(type='nms', iou_threshold=0.5), score_thr=0.0,
                            max_per_img=3)))
    maps = [torch.randn(1, 4, 2, 2), torch.randn(1, 4, 1, 1)]
    scores, regressions = head(maps)
    meta = dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))
    (found,) = head.predict_by_feat(scores, regressions, batch_img_metas=[meta])
    best = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 3) for level in scores])
    assert found.scores.max() == best.softmax(dim=1)[:, :2].max()


def test_weights_that_are_built_without_values_spoil_no_trial(monkeypatch):
    detector = build_detector(small_models.small_config(
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco'))
    # Whatever its memory held.
    detector.level_embed.data.copy_(torch.tensor([0.1, -1e30, torch.nan, torch.inf])[:, None])
    steps = []

    def take(student, batch):
        steps.append(student)
        return student_losses(student, batch)

    monkeypatch.setattr(trial_step, 'student_losses', take)
    inspect_detector(detector, 'student')
    (tried,) = steps
    assert tried.level_embed[:, 0].tolist() == pytest.approx([0.1, 0, 0, 0])
    assert detector.level_embed.isnan().any()  # the detector's own stay as they are
    for own, weight in zip(detector.parameters(), tried.parameters()):
        assert own is detector.level_embed or torch.equal(own, weight)


def test_checkpoints_of_ddq_fit_one_that_has_not_trained_yet():
    config = small_models.small_config('ddq/ddq-detr-4scale_r50_8xb2-12e_coco')
    config['num_queries'] = 20
    trained, other = (build_detector(config).train() for _ in range(2))
    trained.init_weights()
    student_losses(trained, noise(128, 128, 2, trained))
    weights = trained.state_dict()
    assert weights.keys() == other.state_dict().keys()
    # MMDetection alone keeps these twice.
    borrowed = {name.replace('bbox_head', 'decoder'): value for name, value in weights.items()
                if name.startswith('bbox_head.aux_reg_branches.')}
    load_strictly(other, {**weights, **borrowed}, 'its checkpoint')
    assert borrowed and all(map(torch.equal, other.state_dict().values(), weights.values()))
    with pytest.raises(CheckpointError, match='decoder.other'):
        load_strictly(other, {**weights, 'decoder.other': torch.zeros(1)}, 'its checkpoint')


def test_lists_are_those_of_mmdetection_2_by_other_names():
    assert len(SELF_PAIRS) == len(set(SELF_PAIRS)) == len(zoo.SELF_PAIRS) + len(ADDED)
    assert len(PAIRS) == len(set(PAIRS)) == len(zoo.PAIRS) + len(ADDED_PAIRS)
    assert RENAMED.keys() <= {*zoo.SELF_PAIRS, *(name for pair in zoo.PAIRS for name in pair)}
    assert [name for name in {*SELF_PAIRS, *(name for pair in PAIRS for name in pair)}
            if not find_file(f'mmdet::{name}.py')] == [
        'rfnext/rfnext_search_mask_rcnn_pvtv2-b0_fpn_1x_coco']


def test_a_segmenter_whose_parts_count_other_classes_is_named():
    disagreeing_heads.assert_segmenter_is_named('mask2former/mask2former_r50_8xb2-lsj-50e_coco')


def test_a_stage_of_a_cascade_that_counts_other_classes_is_named():
    disagreeing_heads.assert_stage_is_named('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco')
