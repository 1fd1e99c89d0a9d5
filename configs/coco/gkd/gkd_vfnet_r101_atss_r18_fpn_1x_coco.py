# VFNet R101 teaches ATSS R18: both predict once in each cell of the same maps. The student is R18
# in the config of R50, and starts from ImageNet.
import os.path as osp

import mmdet

_base_ = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/atss/atss_r50_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::vfnet/vfnet_r101_fpn_mstrain_2x_coco.py',
        checkpoint='checkpoints/vfnet_r101_fpn_mstrain_2x_coco_20201027pth-4a5d53f1.pth'),
    student=dict(
        config='mmdet::atss/atss_r50_fpn_1x_coco.py',
        overrides={
            'backbone.depth': 18,
            'backbone.init_cfg.checkpoint': 'torchvision://resnet18',
            'neck.in_channels': [64, 128, 256, 512],
        }),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
