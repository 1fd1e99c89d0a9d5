# RepPoints: R101 teaches R50. They have no anchors: the ground truth is taught, and soft labels
# at the points that the student trains as objects.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__),
    '.mim/configs/reppoints/reppoints_moment_r50_fpn_gn-neck+head_2x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::reppoints/reppoints_moment_r101_fpn_gn-neck+head_2x_coco.py',
        checkpoint='checkpoints/reppoints_moment_r101_fpn_gn-neck+head_2x_coco_20200329-4fbc7310.pth'),
    student=dict(
        config='mmdet::reppoints/reppoints_moment_r50_fpn_gn-neck+head_2x_coco.py',
        checkpoint='checkpoints/reppoints_moment_r50_fpn_gn-neck+head_2x_coco_20200329-91babaa2.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=16)
