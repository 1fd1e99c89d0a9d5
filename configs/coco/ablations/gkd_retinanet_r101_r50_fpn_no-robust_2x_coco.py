# Every instance is trusted fully.
_base_ = '../gkd/gkd_retinanet_r101_r50_fpn_2x_coco.py'
model = dict(knowledge=[dict(type='RobustDistillingModule', robust=False)])
