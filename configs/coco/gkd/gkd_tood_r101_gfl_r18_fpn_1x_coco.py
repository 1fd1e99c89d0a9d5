# TOOD R101 teaches GFL R18. Both have the same anchors; TOOD's probabilities count as the logits
# that give them.
_base_ = './gkd_gfl_r101_r18_fpn_1x_coco.py'
model = dict(
    teacher=dict(
        config='mmdet::tood/tood_r101_fpn_mstrain_2x_coco.py',
        checkpoint='checkpoints/tood_r101_fpn_mstrain_2x_coco_20211210_144232-a18f53c8.pth'))
