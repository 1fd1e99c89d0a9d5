# Faster R-CNN: R101 teaches R50, on the data and schedule of the plain student. The authors
# published no settings for PASCAL VOC. Train the teacher first:
# bash tools/train.sh configs/voc/faster_rcnn_r101_fpn_1x_voc0712.py 8
_base_ = './faster_rcnn_r50_fpn_1x_voc0712.py'
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='configs/voc/faster_rcnn_r101_fpn_1x_voc0712.py',
        checkpoint='work_dirs/faster_rcnn_r101_fpn_1x_voc0712/latest.pth'),
    student=dict(
        config='mmdet::pascal_voc/faster_rcnn_r50_fpn_1x_voc0712.py',
        checkpoint='checkpoints/faster_rcnn_r50_fpn_1x_voc0712_20220320_192712-54bef0f3.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
