# Teacher and student need not agree on coordinates (alpha 0 instead of 10).
_base_ = '../gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=dict(alpha=0.0))
