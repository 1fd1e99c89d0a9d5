# New prototypes every 4 epochs instead of every one.
_base_ = '../gkd/gkd_retinanet_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=dict(interval=4))
