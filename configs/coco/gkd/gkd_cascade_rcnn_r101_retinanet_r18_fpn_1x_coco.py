# Cascade R-CNN R101 teaches RetinaNet R18. They classify different boxes: no soft labels.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__),
    '.mim/configs/retinanet/retinanet_r18_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade_rcnn_r101_fpn_1x_coco.py',
        checkpoint='checkpoints/cascade_rcnn_r101_fpn_1x_coco_20200317-0b6a2fbf.pth'),
    student=dict(
        config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        checkpoint='checkpoints/retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
