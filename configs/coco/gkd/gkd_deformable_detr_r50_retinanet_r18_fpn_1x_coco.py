# Deformable DETR R50, refined in two stages, teaches RetinaNet R18 on the maps that both have.
# Its queries are at no anchors: no soft labels.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__),
    '.mim/configs/retinanet/retinanet_r18_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::deformable_detr/deformable_detr_twostage_refine_r50_16x2_50e_coco.py',
        checkpoint='checkpoints/deformable_detr_twostage_refine_r50_16x2_50e_coco_20210419_220613-9d28ab72.pth'),
    student=dict(
        config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        checkpoint='checkpoints/retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
