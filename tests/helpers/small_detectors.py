"""Small detectors of every family, as inline configs, and a batch of images for them."""

import copy

import torch

NUM_CLASSES = 3
NORM = dict(type='BN', requires_grad=True)


def backbone(channels=8):
    return dict(type='ResNet', depth=18, base_channels=channels, stem_channels=channels,
                norm_cfg=NORM, norm_eval=False, style='pytorch')


def neck(channels, backbone_channels=8, start_level=0):
    return dict(type='FPN', in_channels=[backbone_channels * 2 ** i for i in range(4)],
                out_channels=channels, start_level=start_level, num_outs=5,
                add_extra_convs='on_output' if start_level else False)


def retinanet(channels=16, num_classes=NUM_CLASSES, octave_base_scale=4):
    return dict(
        type='RetinaNet',
        backbone=backbone(),
        neck=neck(channels, start_level=1),
        bbox_head=dict(
            type='RetinaHead', num_classes=num_classes, in_channels=channels, stacked_convs=1,
            feat_channels=channels,
            anchor_generator=dict(type='AnchorGenerator', octave_base_scale=octave_base_scale,
                                  scales_per_octave=2, ratios=[0.5, 1.0],
                                  strides=[8, 16, 32, 64, 128]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
            loss_bbox=dict(type='L1Loss')),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                          ignore_iof_thr=-1),
            allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0,
                      nms=dict(type='nms', iou_threshold=0.5), max_per_img=20))


def faster_rcnn(channels=16, num_classes=NUM_CLASSES):
    return dict(
        type='FasterRCNN',
        backbone=backbone(),
        neck=neck(channels),
        rpn_head=dict(
            type='RPNHead', in_channels=channels, feat_channels=channels,
            anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0],
                                  strides=[4, 8, 16, 32, 64]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss')),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                out_channels=channels, featmap_strides=[4, 8, 16, 32]),
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=channels, fc_out_channels=32,
                roi_feat_size=7, num_classes=num_classes,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
                loss_bbox=dict(type='L1Loss'))),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3,
                              min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=-1),
                sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, neg_pos_ub=-1,
                             add_gt_as_proposals=False),
                allowed_border=-1, pos_weight=-1, debug=False),
            rpn_proposal=dict(nms_pre=100, max_per_img=50,
                              nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5,
                              min_pos_iou=0.5, match_low_quality=False, ignore_iof_thr=-1),
                sampler=dict(type='RandomSampler', num=32, pos_fraction=0.25, neg_pos_ub=-1,
                             add_gt_as_proposals=True),
                pos_weight=-1, debug=False)),
        test_cfg=dict(
            rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7),
                     min_bbox_size=0),
            rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)))


def mask_rcnn(channels=16, num_classes=NUM_CLASSES):
    model = faster_rcnn(channels, num_classes)
    extractor = model['roi_head']['bbox_roi_extractor']
    model['type'] = 'MaskRCNN'
    model['roi_head'].update(
        mask_roi_extractor=dict(extractor, roi_layer=dict(extractor['roi_layer'], output_size=14)),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=channels,
                       conv_out_channels=channels, num_classes=num_classes,
                       loss_mask=dict(type='CrossEntropyLoss', use_mask=True)))
    model['train_cfg']['rcnn']['mask_size'] = 28
    model['test_cfg']['rcnn']['mask_thr_binary'] = 0.5
    return model


def dynamic_rcnn(channels=16, num_classes=NUM_CLASSES, interval=2):
    """Its thresholds change every so many steps."""
    model = faster_rcnn(channels, num_classes)
    model['roi_head']['type'] = 'DynamicRoIHead'
    model['roi_head']['bbox_head']['loss_bbox'] = dict(type='SmoothL1Loss', beta=1.0)
    model['train_cfg']['rcnn']['dynamic_rcnn'] = dict(
        iou_topk=75, beta_topk=10, update_iter_interval=interval, initial_iou=0.05,
        initial_beta=1.0)
    return model


def libra_rcnn(channels=16, num_classes=NUM_CLASSES):
    """Its sampler draws negatives otherwise from its second draw on."""
    model = faster_rcnn(channels, num_classes)
    model['train_cfg']['rcnn']['sampler'] = dict(
        type='CombinedSampler', num=16, pos_fraction=0.25, add_gt_as_proposals=True,
        pos_sampler=dict(type='InstanceBalancedPosSampler'),
        neg_sampler=dict(type='IoUBalancedNegSampler', floor_thr=-1, floor_fraction=0,
                         num_bins=3))
    return model


def fcos(channels=16, num_classes=NUM_CLASSES):
    return dict(
        type='FCOS',
        backbone=backbone(),
        neck=neck(channels, start_level=1),
        bbox_head=dict(type='FCOSHead', num_classes=num_classes, in_channels=channels,
                       stacked_convs=1, feat_channels=channels,
                       norm_cfg=dict(type='BN', requires_grad=True),
                       strides=[8, 16, 32, 64, 128]),
        train_cfg=None,
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0,
                      nms=dict(type='nms', iou_threshold=0.5), max_per_img=20))


FAMILIES = dict(one_stage=retinanet, two_stage=faster_rcnn)


def distiller(teacher, student, knowledge=(dict(type='RobustDistillingModule'),), **prototypes):
    """Config of a distiller with untrained detectors."""
    return copy.deepcopy(dict(
        type='Distiller',
        teacher=dict(config=teacher, checkpoint=None),
        student=dict(config=student),
        prototypes=dict(type='PrototypeGenerationModule', **prototypes),
        knowledge=list(knowledge)))


def batch(num_images=2, size=128, seed=0, boxes=((8, 8, 60, 60), (70, 64, 120, 122))):
    """Training inputs; every image has the same boxes, classes 0, 1, ..."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4)
    meta = dict(img_shape=(size, size, 3), ori_shape=(size, size, 3), pad_shape=(size, size, 3),
                scale_factor=1.0, flip=False, filename='image.png')
    return dict(img=torch.randn(num_images, 3, size, size, generator=generator),
                img_metas=[dict(meta) for _ in range(num_images)],
                gt_bboxes=[boxes.clone() for _ in range(num_images)],
                gt_labels=[torch.arange(len(boxes)) % NUM_CLASSES for _ in range(num_images)])


def random_bank(pair, per_class=2, seed=0, class_channels=0):
    """A prototype bank of random features; of a class space, too, if it has channels."""
    from gkd.prototypes import PrototypeBank
    generator = torch.Generator().manual_seed(seed)
    count = per_class * pair.num_classes
    return PrototypeBank(
        student=[torch.rand(count, channels, generator=generator)
                 for channels in pair.channels(pair.student)],
        teacher=[torch.rand(count, channels, generator=generator)
                 for channels in pair.channels(pair.teacher)],
        offsets=[torch.arange(0, count + 1, per_class) for _ in pair.strides],
        class_features=[torch.randn(count, class_channels, generator=generator)
                        for _ in pair.strides if class_channels])
