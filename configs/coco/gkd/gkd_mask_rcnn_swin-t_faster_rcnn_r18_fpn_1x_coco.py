# Mask R-CNN Swin-T teaches Faster R-CNN R18, with the data and schedule of MMDetection's own
# Faster R-CNN.
_base_ = './gkd_cascade_rcnn_r101_faster_rcnn_r18_fpn_1x_coco.py'
model = dict(
    teacher=dict(
        config='mmdet::swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        checkpoint='checkpoints/mask_rcnn_swin-t-p4-w7_fpn_1x_coco_20210902_120937-9d6b7cfa.pth'))
