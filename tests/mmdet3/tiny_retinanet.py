"""Train the tests' RetinaNet for an epoch, or load it, and write what it makes of some images.

tiny_retinanet.py train DATA WORK_DIR: through MMEngine's runner; leaves epoch_1.pth, maps.pth
tiny_retinanet.py load CHECKPOINT MAPS [CHECKPOINT MAPS ...]: with MMDetection's own
``init_detector``; prints each one's classes on a line
"""

import sys
from pathlib import Path

import gkd  # isort: skip  (before anything imports mmdet)
import torch
from helpers import small_detectors as small
from mmdet.apis import init_detector
from mmengine.config import Config
from mmengine.runner import Runner

import gkd.compat.checkpoint
import gkd.compat.weights

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(128, 128), keep_ratio=True), dict(type='PackDetInputs')]


def config(data='', work_dir=''):
    dataset = dict(type='CocoDataset', data_root=data, ann_file='annotations.json',
                   data_prefix=dict(img='images/'), pipeline=LOAD,
                   metainfo=dict(classes=('red', 'green', 'blue')))
    model = dict(small.retinanet(), data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
        pad_size_divisor=32))
    return Config(dict(
        default_scope='mmdet', work_dir=work_dir, model=model,
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=dataset,
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        optim_wrapper=dict(type='OptimWrapper',
                           optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True)],
        randomness=dict(seed=0)))


def write_maps(detector, path):
    torch.manual_seed(0)
    with torch.no_grad():
        torch.save(detector.eval()(torch.randn(1, 3, 64, 96)), path)


def train(data, work_dir):
    runner = Runner.from_cfg(config(data, work_dir))
    runner.train()
    write_maps(runner.model, Path(work_dir) / 'maps.pth')


def load(path, maps):
    plain = config()
    # MMDetection looks there for colours.
    plain.test_dataloader = dict(dataset=plain.train_dataloader.dataset)
    detector = init_detector(plain, path, device='cpu')
    checkpoint = gkd.compat.checkpoint.load_checkpoint_file(path)
    gkd.compat.weights.load_strictly(detector, checkpoint, path)
    print(*detector.dataset_meta['classes'])
    write_maps(detector, maps)


if __name__ == '__main__':
    torch.set_num_threads(1)
    action, *paths = sys.argv[1:]
    for first, second in zip(paths[::2], paths[1::2]):
        (train if action == 'train' else load)(first, second)
