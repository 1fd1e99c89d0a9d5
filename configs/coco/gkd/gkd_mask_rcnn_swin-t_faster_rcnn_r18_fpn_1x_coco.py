# Mask R-CNN Swin-T teaches Faster R-CNN R18, with the data and schedule of MMDetection's own
# Faster R-CNN. The student is R18 in the config of R50, and starts from ImageNet.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__),
    '.mim/configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        checkpoint='checkpoints/mask_rcnn_swin-t-p4-w7_fpn_1x_coco_20210902_120937-9d6b7cfa.pth'),
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
