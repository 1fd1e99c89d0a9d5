# Weight 1 instead of 10 of the disagreement of coordinates.
_base_ = '../gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=dict(alpha=1.0))
