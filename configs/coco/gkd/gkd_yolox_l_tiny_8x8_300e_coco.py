# YOLOX: L teaches tiny, on the images that the student resizes. The learning rate is for 64
# images. The student starts as its own config says.
import os.path as osp

import mmdet

_base_ = osp.join(osp.dirname(mmdet.__file__), '.mim/configs/yolox/yolox_tiny_8x8_300e_coco.py')
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::yolox/yolox_l_8x8_300e_coco.py',
        checkpoint='checkpoints/yolox_l_8x8_300e_coco_20211126_140236-d3bd2b23.pth'),
    student=dict(
        config='mmdet::yolox/yolox_tiny_8x8_300e_coco.py'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
auto_scale_lr = dict(enable=True, base_batch_size=64)
