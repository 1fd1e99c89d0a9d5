# RetinaNet: R101 teaches R50, on the data and schedule of the plain student. The authors
# published no settings for PASCAL VOC. Train the teacher first:
# bash tools/train.sh configs/voc/retinanet_r101_fpn_1x_voc0712.py 8
_base_ = './retinanet_r50_fpn_1x_voc0712.py'
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='configs/voc/retinanet_r101_fpn_1x_voc0712.py',
        checkpoint='work_dirs/retinanet_r101_fpn_1x_voc0712/latest.pth'),
    student=dict(
        config='mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        checkpoint='checkpoints/retinanet_r50_fpn_1x_voc0712_20200617-47cbdd0e.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
