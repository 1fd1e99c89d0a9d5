# Deformable DETR R50, refined in two stages, teaches RetinaNet R18 on the maps that both have.
# Its queries are at no anchors: no soft labels.
_base_ = './gkd_cascade_rcnn_r101_retinanet_r18_fpn_1x_coco.py'
model = dict(
    teacher=dict(
        config='mmdet::deformable_detr/deformable_detr_twostage_refine_r50_16x2_50e_coco.py',
        checkpoint='checkpoints/deformable_detr_twostage_refine_r50_16x2_50e_coco_20210419_220613-9d28ab72.pth'))
