# The config that the installed MMDetection ships, with the learning rate scaled to the batch, a
# warm-up, and epochs of one pass over the data instead of three: 12 of one for 4 of three.
import os.path as osp

import mmdet

_base_ = osp.join(
    osp.dirname(mmdet.__file__), '.mim/configs/pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
auto_scale_lr = dict(enable=True, base_batch_size=16)
data = dict(train=dict(times=1))
lr_config = dict(
    policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[9])
runner = dict(max_epochs=12)
