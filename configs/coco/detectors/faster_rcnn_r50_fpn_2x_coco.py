# The config that the installed MMDetection ships, with the learning rate scaled to the batch.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__), '.mim/configs/faster_rcnn/faster_rcnn_r50_fpn_2x_coco.py')
auto_scale_lr = dict(enable=True, base_batch_size=16)
