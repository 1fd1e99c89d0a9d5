_base_ = [
    '../_base_/models/faster_rcnn_small.py', '../_base_/tree_crowns_detection.py',
    '../_base_/schedule_quickstart.py', '../_base_/runtime.py'
]
# ResNet-18, an eighth as wide, from scratch
model = dict(
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_eval=False),
    neck=dict(in_channels=[8, 16, 32, 64]))
