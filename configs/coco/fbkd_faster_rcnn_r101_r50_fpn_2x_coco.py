# Attention-guided and non-local features (FBKD) instead of global knowledge: same
# teacher, start and schedule, its authors' settings.
_base_ = './gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(prototypes=None, knowledge=[dict(type='FBKD')])
