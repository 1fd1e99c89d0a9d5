# Decoupled features (DeFeat) in place of gkd: same teacher, start and schedule.
# The settings are the class's defaults: its authors' for PASCAL VOC; they published none for COCO.
_base_ = '../gkd/gkd_retinanet_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=None, knowledge=[dict(type='DeFeat')])
