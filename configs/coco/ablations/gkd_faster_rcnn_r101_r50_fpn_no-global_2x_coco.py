# Without global knowledge.
_base_ = '../gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(knowledge=[dict(type='RobustDistillingModule', global_knowledge=None)])
