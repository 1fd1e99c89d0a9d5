# HTC X101 teaches Mask R-CNN R18, which goes on learning masks from their ground truth. The
# student is R18 in the config of R50, and starts from ImageNet.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__),
    '.mim/configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::htc/htc_x101_64x4d_fpn_16x1_20e_coco.py',
        checkpoint='checkpoints/htc_x101_64x4d_fpn_16x1_20e_coco_20200318-b181fd7a.pth'),
    student=dict(
        config='mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py',
        overrides={
            'backbone.depth': 18,
            'backbone.init_cfg.checkpoint': 'torchvision://resnet18',
            'neck.in_channels': [64, 128, 256, 512],
        }),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
