# RetinaNet: R101 teaches MobileNetV2. Train the student first:
# bash tools/train.sh configs/coco/detectors/retinanet_mobilenetv2_fpn_2x_coco.py 8
_base_ = './gkd_retinanet_r101_r50_fpn_2x_coco.py'
model = dict(
    student=dict(
        config='configs/coco/detectors/retinanet_mobilenetv2_fpn_2x_coco.py',
        checkpoint='work_dirs/retinanet_mobilenetv2_fpn_2x_coco/latest.pth'))
