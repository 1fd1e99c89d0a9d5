_base_ = [
    '../_base_/models/retinanet_small.py', '../_base_/character_scenes_detection.py',
    '../_base_/schedule_digit_scenes.py', '../_base_/runtime.py'
]
custom_imports = dict(imports=['gkd'])  # registers the backbone
model = dict(
    backbone=dict(
        type='EfficientNetLite0',
        frozen_stages=2,  # edges and textures are known already
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/efficientnet_lite0.safetensors')),
    neck=dict(in_channels=[24, 40, 112, 320]),
    # most characters are taller than wide
    bbox_head=dict(num_classes=80, anchor_generator=dict(ratios=[1.2])))
optimizer = dict(lr=0.001)
runner = dict(max_epochs=6)
