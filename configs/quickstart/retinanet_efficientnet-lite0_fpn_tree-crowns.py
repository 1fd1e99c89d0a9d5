_base_ = [
    '../_base_/models/retinanet_small.py', '../_base_/tree_crowns_detection.py',
    '../_base_/schedule_quickstart.py', '../_base_/runtime.py'
]
custom_imports = dict(imports=['gkd'])  # registers the backbone
model = dict(
    backbone=dict(
        type='EfficientNetLite0',
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/efficientnet_lite0.safetensors')),
    neck=dict(in_channels=[24, 40, 112, 320]))
# pretrained, it needs smaller steps and fewer of them
optimizer = dict(lr=0.001)
runner = dict(max_epochs=5)
