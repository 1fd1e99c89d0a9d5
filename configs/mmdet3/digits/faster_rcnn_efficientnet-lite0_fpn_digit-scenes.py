_base_ = ['../../_base_/models/faster_rcnn_small.py', '../_base_/digit_scenes.py']
model = dict(
    data_preprocessor=_base_.preprocessor,
    backbone=dict(
        type='EfficientNetLite0',
        frozen_stages=2,  # edges and textures are known already
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/efficientnet_lite0.safetensors')),
    neck=dict(in_channels=[24, 40, 112, 320]),
    # digits are taller than wide
    rpn_head=dict(anchor_generator=dict(ratios=[1.6])),
    roi_head=dict(bbox_head=dict(num_classes=10)))
optim_wrapper = dict(optimizer=dict(lr=0.001))
train_cfg = dict(max_epochs=3)
custom_hooks = [dict(type='FiniteLossHook'), dict(type='ReportHook')]
