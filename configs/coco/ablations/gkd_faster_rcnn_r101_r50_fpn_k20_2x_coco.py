# 20 prototypes per class and level instead of 10.
_base_ = '../gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=dict(num_prototypes=20))
