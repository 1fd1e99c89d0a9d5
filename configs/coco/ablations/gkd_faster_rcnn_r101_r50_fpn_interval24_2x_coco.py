# Prototypes once, before the first of 24 epochs.
_base_ = '../gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=dict(interval=24))
