# PAA R101 teaches ATSS R50.
import os.path as osp

import mmdet

_base_ = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/atss/atss_r50_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::paa/paa_r101_fpn_2x_coco.py',
        checkpoint='checkpoints/paa_r101_fpn_2x_coco_20200821-6829f96b.pth'),
    student=dict(
        config='mmdet::atss/atss_r50_fpn_1x_coco.py',
        checkpoint='checkpoints/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
