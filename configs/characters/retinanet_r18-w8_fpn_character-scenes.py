_base_ = [
    '../_base_/models/retinanet_small.py', '../_base_/character_scenes_detection.py',
    '../_base_/schedule_digit_scenes.py', '../_base_/runtime.py'
]
# ResNet-18, an eighth as wide, from scratch
model = dict(
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_eval=False),
    neck=dict(in_channels=[8, 16, 32, 64]),
    # most characters are taller than wide
    bbox_head=dict(num_classes=80, anchor_generator=dict(ratios=[1.2])))
