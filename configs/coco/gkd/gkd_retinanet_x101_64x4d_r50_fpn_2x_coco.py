# RetinaNet: X101 teaches R50.
_base_ = './gkd_retinanet_r101_r50_fpn_2x_coco.py'
model = dict(
    teacher=dict(
        config='mmdet::retinanet/retinanet_x101_64x4d_fpn_1x_coco.py',
        checkpoint='checkpoints/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth'))
