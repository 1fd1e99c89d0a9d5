# Decoupled features (DeFeat) instead of global knowledge: same
# teacher, start and schedule, its authors' settings.
_base_ = './gkd_retinanet_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=None, knowledge=[dict(type='DeFeat')])
