"""Whole configs of small trainings, and MMEngine's runner to train them."""

import copy
from pathlib import Path

import numpy as np
from helpers import small_detectors as small
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

TOOLS = Path(__file__).parents[2] / 'tools' / 'mmdet3'
CLASSES = ('red', 'green', 'blue')
COLOURS = ((30, 30, 220), (30, 220, 30), (220, 30, 30))
IMAGES = 6
PREPROCESSOR = dict(type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3,
                    bgr_to_rgb=True, pad_size_divisor=32)


def detector(family, channels=16):
    return dict(small.FAMILIES[family](channels), data_preprocessor=PREPROCESSOR)


def experiment(annotations, work_dir, family='one_stage', workers=0, hooks=(),
               inside_epoch=2, launcher='none', accumulated=1, space='maps', randomness=None,
               **settings):
    """A whole config."""
    def data(transforms, **others):
        return dict(type='CocoDataset', metainfo=dict(classes=CLASSES), ann_file=str(annotations),
                    data_prefix=dict(img=str(annotations.parent)), pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='LoadAnnotations', with_bbox=True),
                        dict(type='Resize', scale=(128, 128), keep_ratio=True), *transforms,
                        dict(type='PackDetInputs', meta_keys=(
                            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))],
                    **others)

    test = dict(batch_size=1, num_workers=0, persistent_workers=False,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=data([], test_mode=True))
    model = small.distiller(
        detector(family, 24), detector(family), num_prototypes=3, min_size=20,
        knowledge=[dict(type='RobustDistillingModule', global_knowledge=dict(space=space))])
    return Config(dict(
        default_scope='mmdet', model=model, work_dir=str(work_dir), launcher=launcher,
        train_dataloader=dict(
            batch_size=2, num_workers=workers, persistent_workers=workers > 0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_sampler=dict(type='AspectRatioBatchSampler'),
            dataset=data([dict(type='RandomFlip', prob=0.5)])),
        val_dataloader=test, val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='CocoMetric', ann_file=str(annotations), metric='bbox'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.005, momentum=0.9),
                           accumulative_counts=accumulated,
                           clip_grad=dict(max_norm=10)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)],
        default_hooks=dict(
            checkpoint=dict(type='ResumableCheckpointHook', interval=1,
                            inside_epoch=inside_epoch),
            logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='PrototypeHook'), dict(type='FiniteLossHook'), *hooks],
        randomness=randomness or dict(seed=0), log_level='WARNING', **settings))


def counting_iterations(config, max_iters=8, interval=2, sampler='InfiniteSampler'):
    """The same, for so many iterations; three are a pass through the data."""
    config.train_cfg = dict(type='IterationTrainLoop', max_iters=max_iters, val_interval=4)
    config.train_dataloader.sampler.type = sampler
    config.default_hooks.checkpoint.update(by_epoch=False, interval=interval)
    config.log_processor = dict(by_epoch=False)
    return config


def train(config, **settings):
    config = copy.deepcopy(config)
    config.update(settings)
    config.experiment_name = f'{config.work_dir}{np.random.rand()}'
    with DefaultScope.overwrite_default_scope('mmdet'):
        runner = Runner.from_cfg(config)
        runner.train()
    return runner
