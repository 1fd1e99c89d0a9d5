"""Students whose heads assign their anchors as ATSS does, such as GFL."""

import pytest
import torch
from helpers import small_detectors as small
from mmcv import Config
from mmdet.models import build_detector

from gkd.detectors import one_stage
from gkd.detectors.inspection import inspect_pair
from gkd.detectors.step import Needs
from gkd.frameworks import to_batch


def gfl(channels=16):
    detector = small.retinanet(channels)
    anchors = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
                   strides=[8, 16, 32, 64, 128])
    detector['bbox_head'] = dict(
        type='GFLHead', num_classes=small.NUM_CLASSES, in_channels=channels, stacked_convs=1,
        feat_channels=channels, norm_cfg=small.NORM, anchor_generator=anchors,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25), reg_max=16,
        loss_bbox=dict(type='GIoULoss'))
    detector['type'] = 'GFL'
    detector['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=9)
    return detector


@pytest.fixture
def student():
    return build_detector(Config(dict(model=gfl())).model)


def test_positives_are_found_among_all_anchors(student):
    data = small.batch()
    pair = inspect_pair(student, student)
    student.train()
    _, step = one_stage.student_step(student, pair, Needs(logits=True), to_batch(**data))
    positions = step.positions
    assert len(positions) > 4
    sizes = [feature.shape[-2:] for feature in step.student.maps]
    anchors = torch.cat(student.bbox_head.get_anchors(sizes, data['img_metas'])[0][0])
    torch.testing.assert_close(anchors[positions[:, 1]], torch.cat(step.boxes), rtol=0, atol=0)
    images = torch.cat([torch.full((len(boxes),), image)
                        for image, boxes in enumerate(step.boxes)])
    assert torch.equal(positions[:, 0], images)


def test_all_three_kinds_of_knowledge_reach_it():
    distiller = build_detector(small.distiller(gfl(24), gfl()))
    distiller.bank = small.random_bank(distiller.pair)
    losses = distiller.forward_train(**small.batch())
    for name in ('loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft'):
        assert losses[name] > 0
    losses['loss_soft'].backward()
    assert distiller.student.bbox_head.gfl_cls.weight.grad.any()
