_base_ = ['../../_base_/models/faster_rcnn_small.py', '../_base_/tree_crowns.py']
model = dict(
    data_preprocessor=_base_.preprocessor,
    backbone=dict(
        type='EfficientNetLite0',
        frozen_stages=2,  # edges and textures are known already
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/efficientnet_lite0.safetensors')),
    neck=dict(in_channels=[24, 40, 112, 320]))
optim_wrapper = dict(optimizer=dict(lr=0.001))
train_cfg = dict(max_epochs=5)
custom_hooks = [dict(type='FiniteLossHook'), dict(type='ReportHook')]
