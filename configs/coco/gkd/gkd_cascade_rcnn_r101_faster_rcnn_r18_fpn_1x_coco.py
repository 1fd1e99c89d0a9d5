# Cascade R-CNN R101 teaches Faster R-CNN R18; the cascade's first stage gives the soft labels.
# The student is R18 in the config of R50, and starts from ImageNet.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__),
    '.mim/configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade_rcnn_r101_fpn_1x_coco.py',
        checkpoint='checkpoints/cascade_rcnn_r101_fpn_1x_coco_20200317-0b6a2fbf.pth'),
    student=dict(
        config='mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py',
        overrides={
            'backbone.depth': 18,
            'backbone.init_cfg.checkpoint': 'torchvision://resnet18',
            'neck.in_channels': [64, 128, 256, 512],
        }),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
