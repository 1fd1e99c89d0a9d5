# Cascade Mask R-CNN X101 teaches Faster R-CNN R50 by its maps alone, without soft labels.
_base_ = './gkd_faster_rcnn_r101_r50_fpn_2x_coco.py'
model = dict(
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco.py',
        checkpoint='checkpoints/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco_20200512_161033-bdb5126a.pth'),
    knowledge=[dict(type='RobustDistillingModule', soft_label=None)])
