# Relations of instances (RKD) in place of gkd: same teacher, start and schedule.
# The settings are the class's defaults; docs/comparison.md says whose they are.
_base_ = '../gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=None, knowledge=[dict(type='RKD')])
