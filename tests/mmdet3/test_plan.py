"""What a plan tells of a config of MMDetection 3."""

import copy
import os
import re
import runpy
import sys
from dataclasses import astuple

import pytest
import torch
from helpers import small_detectors as small
from helpers.small_plans import COSTS, HEIGHT, IMAGES, PROBES, WIDTH
from mmengine.config import ConfigDict
from small_experiments import CLASSES, PREPROCESSOR, TOOLS, detector, experiment, train

from gkd.engine.config import load_config
from gkd.engine.image_size import image_size, size_after
from gkd.errors import ConfigError, DataError
from gkd.frameworks import build_dataset, build_detector, logger, student_losses
from gkd.matching import check_num_classes
from gkd.planning.cost import noise
from gkd.planning.door import schedule_of
from gkd.planning.plan import make_plan
from studies import small_models

CONFIGS = TOOLS.parents[1] / 'configs' / 'mmdet3'


@pytest.fixture
def config(annotations, tmp_path):
    """A distillation config."""
    return experiment(annotations, tmp_path / 'work')


def run(monkeypatch, capsys, *arguments):
    """What the command prints."""
    monkeypatch.setattr(sys, 'argv', ['plan.py', *map(str, arguments)])
    runpy.run_path(str(TOOLS.parent / 'plan.py'))['main']()
    return capsys.readouterr().out


@pytest.mark.parametrize('family', small.FAMILIES)
def test_costs_are_those_of_mmdetection_2(annotations, tmp_path, family):
    """Which has the same test."""
    config = experiment(annotations, tmp_path, family)
    config.train_dataloader.batch_size = IMAGES
    config.train_dataloader.dataset.pipeline[2].scale = (WIDTH, HEIGHT - 6)
    plan = make_plan(config, probes=PROBES)
    # The preprocessor pads to a multiple of 32.
    assert (plan.width, plan.height, plan.schedule.images) == (WIDTH, HEIGHT, IMAGES)
    assert astuple(plan.cost) == pytest.approx(COSTS[family], rel=0.02)


@pytest.mark.usefixtures('short_backbones')
def test_boxinst_trains_on_noise():
    """Its preprocessor, which no synthetic batch passes, finds neighbours of like colour."""
    pytest.importorskip('skimage')
    config = small_models.small_config('boxinst/boxinst_r50_fpn_ms-90k_coco')
    model = build_detector(config).train()
    losses = student_losses(model, noise(WIDTH, HEIGHT, IMAGES, model))
    assert losses['loss_mask_project'].item() > 0


@pytest.mark.usefixtures('short_backbones')
@pytest.mark.parametrize('name', ['solo/solo_r50_fpn_1x_coco',
                                  'mask2former/mask2former_r50_8xb2-lsj-50e_coco'])
def test_classes_of_a_segmenter_are_counted(name):
    """Its head is no `bbox_head`."""
    model = build_detector(small_models.small_config(name))
    labels = torch.cat(noise(128, 128, 2, model).gt_labels)
    assert 0 < labels.max() < 80
    with pytest.raises(ConfigError, match='detects 80 classes, data.train has 3'):
        check_num_classes(model, CLASSES, 'data.train')


def test_a_student_that_trains_on_masks_gets_them(annotations, tmp_path):
    """What its mask head computes comes on top."""
    config = experiment(annotations, tmp_path, 'two_stage')
    boxes, masks = (make_plan(config, image=(128, 128)).cost
                    for config.model.student.config in (
                        config.model.student.config,
                        dict(small.mask_rcnn(), data_preprocessor=PREPROCESSOR)))
    assert masks.student > 1.1 * boxes.student


@pytest.mark.slow
def test_checkpoints_are_as_large_as_told(annotations, tmp_path):
    config = experiment(annotations, tmp_path / 'work', hooks=[dict(type='EMAHook')])
    config.train_cfg.max_epochs = 1
    plan = make_plan(config, image=(128, 128))
    train(config)
    assert os.path.getsize(tmp_path / 'work' / 'epoch_1.pth') == \
        pytest.approx(plan.checkpoint_bytes, rel=0.15)


@pytest.mark.parametrize('steps, expected', [
    ([dict(type='Resize', scale=(1333, 800))], (1333, 800)),
    ([dict(type='Resize', scale=(600, 1000))], (1000, 600)),
    ([dict(type='Resize', scale=416)], (416, 416)),
    ([dict(type='RandomResize', scale=[(1333, 640), (1333, 800)])], (1333, 800)),
    ([dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)])], (1333, 800)),
    ([dict(type='RandomResize', scale=(1000, 500), ratio_range=(0.8, 1.2))], (1200, 600)),
    # Mosaic's images are cropped again: RTMDet, YOLOX.
    ([dict(type='CachedMosaic', img_scale=(640, 640)),
      dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0)),
      dict(type='RandomCrop', crop_size=(640, 640)), dict(type='Pad', size=(640, 640)),
      dict(type='CachedMixUp', img_scale=(640, 640))], (640, 640)),
    # One of two ways, as in DETR.
    ([dict(type='RandomChoice', transforms=[
        [dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)])],
        [dict(type='RandomChoiceResize', scales=[(400, 4200), (600, 4200)]),
         dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600)),
         dict(type='RandomChoiceResize', scales=[(480, 1000), (900, 1000)])]])], (1333, 900)),
    ([dict(type='Resize', scale=(640, 400)),
      dict(type='RandomCrop', crop_type='relative', crop_size=(0.5, 0.5))], (640, 400)),
    ([dict(type='Resize', scale=(640, 400)),
      dict(type='RandomCrop', crop_type='relative_range', crop_size=(0.5, 0.5))], (640, 400)),
    ([dict(type='Resize', scale=(640, 400)), dict(type='Pad', pad_to_square=True)], (640, 640)),
    ([dict(type='Resize', scale=(600, 400)), dict(type='Pad', size_divisor=32)], (608, 416)),
    ([dict(type='Resize', scale=(600, 400)), dict(type='Pad', size=(800, 300))], (800, 400)),
    ([dict(type='Resize', scale=(640, 640)),
      dict(type='BatchSyncRandomResize', random_size_range=(480, 800))], (800, 800)),
    ([dict(type='Resize', scale=(1000, 500)),
      dict(type='BatchSyncRandomResize', random_size_range=(480, 800))], (1600, 800)),
    ([dict(type='Resize', scale=(600, 400)), dict(type='RandomCrop', crop_size=(640, 300))],
     (600, 300)),
    ([dict(type='LoadImageFromFile')], None)])
def test_largest_image_after_the_steps_of_a_pipeline(steps, expected):
    assert size_after([ConfigDict(step) for step in steps], None) == expected


def test_images_of_a_real_pipeline_are_as_large_as_told(config):
    config.train_dataloader.dataset.pipeline[2:3] = [
        dict(type='RandomResize', scale=(200, 200), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(90, 90), allow_negative_crop=True),
        dict(type='Pad', size=(90, 90))]
    config.model.student.config.data_preprocessor.pad_size_divisor = 1
    dataset = build_dataset(config.train_dataloader.dataset)
    assert image_size(config) == (90, 90)
    assert {tuple(dataset[index]['inputs'].shape[1:]) for index in range(6)} == {(90, 90)}


@pytest.mark.parametrize('wrapped', [
    lambda data: dict(type='RepeatDataset', times=3, dataset=data),
    lambda data: dict(type='ConcatDataset', datasets=[
        dict(data, pipeline=[]), dict(type='ClassBalancedDataset', dataset=data)]),
    lambda data: dict(type='MultiImageMixDataset', dataset=dict(data, pipeline=[]),
                      pipeline=data.pipeline)])
def test_data_sets_in_wrappers(config, wrapped):
    config.train_dataloader.dataset.pipeline[2].scale = (300, 200)
    config.train_dataloader.dataset = wrapped(config.train_dataloader.dataset)
    assert image_size(config) == (320, 224)  # a multiple of 32 for the student


def test_batches_that_the_preprocessor_scales(config):
    config.train_dataloader.dataset.pipeline[2].scale = (300, 200)
    config.model.student.config.data_preprocessor.batch_augments = [
        dict(type='BatchSyncRandomResize', random_size_range=(480, 896))]
    assert image_size(config) == (1280, 896)  # four times the padded image


def test_pipeline_without_a_size(config):
    del config.train_dataloader.dataset.pipeline[2]
    config.test_dataloader = copy.deepcopy(config.val_dataloader)
    config.test_dataloader.dataset.pipeline[2].scale = (64, 64)
    assert image_size(config) == (64, 64)
    del config.test_dataloader.dataset.pipeline[2]
    with pytest.raises(ConfigError, match='--size WIDTH HEIGHT'):
        image_size(config)


@pytest.mark.parametrize('name, size, images, length, checkpoints', [
    ('gkd_retinanet_r101_r50_fpn_2x_coco', (1344, 800), 2, 24, 24),
    ('gkd_rtmdet_s_tiny_8xb32-300e_coco', (640, 640), 32, 300, 3)])
def test_what_the_projects_configs_say(name, size, images, length, checkpoints):
    config = load_config(str(CONFIGS / f'{name}.py'))
    schedule = schedule_of(config)
    assert image_size(config) == size
    assert (schedule.images, schedule.length, schedule.checkpoints) == (
        images, length, checkpoints)


def test_learning_rate_is_scaled_as_in_training(config):
    config.auto_scale_lr = dict(enable=True, base_batch_size=16)
    assert schedule_of(config).scaled_rate(gpus=16) == 0.01  # two images each
    config.auto_scale_lr.enable = False
    assert schedule_of(config).scaled_rate(gpus=16) == 0.005


@pytest.mark.parametrize('hooks, expected', [
    (None, 24), (dict(logger=dict(type='LoggerHook')), 24), (dict(checkpoint=None), 0),
    (dict(checkpoint=dict(interval=5)), 5),
    (dict(checkpoint=dict(interval=1, max_keep_ckpts=2)), 2), (dict(checkpoint=dict()), 1)])
def test_kept_checkpoints(config, hooks, expected):
    config.default_hooks = hooks
    config.train_cfg.max_epochs = 24
    assert schedule_of(config).checkpoints == expected


def test_training_that_counts_steps(config):
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=9000)
    config.default_hooks.checkpoint = dict(by_epoch=False, interval=1000)
    schedule = schedule_of(config)
    assert schedule.describe(gpus=2) == '9000 steps, 4 images per step, learning rate 0.005'
    assert schedule.checkpoints == 9
    # 2.25 passes with 4 images per step.
    assert [schedule.generations(interval, images=16000, gpus=2) for interval in (1, 2)] == [3, 2]


def test_averaged_weights_are_kept_beside_the_others(config):
    alone = make_plan(config, image=(128, 128))
    config.custom_hooks.append(dict(type='EMAHook'))
    plan = make_plan(config, image=(128, 128))
    assert plan.memory - alone.memory == plan.checkpoint_bytes - alone.checkpoint_bytes
    assert plan.memory - alone.memory > 4 * (plan.parameters['student'] + plan.parameters['extra'])


def test_settings_of_single_parameters_are_not_logged(config, monkeypatch):
    logged, level = [], logger().level
    monkeypatch.setattr(type(logger()), 'callHandlers', lambda self, record: logged.append(record))
    config.optim_wrapper.optimizer.weight_decay = 1e-4
    config.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0)
    logger().setLevel('INFO')
    try:
        logger().info('before')
        make_plan(config, image=(128, 128))
        logger().warning('after')
    finally:
        logger().setLevel(level)
    assert [record.msg for record in logged] == ['before', 'after']


def test_mixed_precision_is_planned_without_a_gpu(config):
    usual = make_plan(config, image=(128, 128))
    config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    assert make_plan(config, image=(128, 128)) == usual


def test_passes_of_a_training_that_counts_iterations_are_those_of_its_wrappers(
        config, tmp_path, monkeypatch, capsys):
    dataset = config.train_dataloader.pop('dataset')  # of 6 images
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=36)
    config.train_dataloader.update(batch_size=1, dataset=dict(
        type='RepeatDataset', times=3, dataset=dataset))
    config.dump(tmp_path / 'repeated.py')
    printed = run(monkeypatch, capsys, tmp_path / 'repeated.py', '--only-prototypes')
    assert re.search(r'generations: +2, so', printed)


def test_command(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'distil.py'
    config.dump(path)
    printed = run(monkeypatch, capsys, path, '--gpus', 2, '--cfg-options',
                  'train_dataloader.batch_size=3', 'train_cfg.max_epochs=5',
                  'model.prototypes.interval=2')
    assert '3 images of at most 128 x 128 on each of 2 GPUs, 6 a step' in printed
    assert 'averaged weights' not in printed
    for name in ('student', 'teacher', 'extra'):
        assert re.search(rf'{name} [\d.]+ [kMG]', printed)
    assert re.search(r'images to run: +6 in 2 batches', printed)
    assert re.search(r'generations: +3, so 24 images', printed)
    assert re.search(r'instances: +12, of 3 of 3 classes, 4 to 4 a class', printed)


@pytest.mark.slow
def test_sizes_of_the_command(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'distil.py'
    config.train_dataloader.batch_size = 1
    config.dump(path)
    larger, exact = (run(monkeypatch, capsys, path, '--size', 576, 256, *options)
                     for options in ((), ('--exact',)))
    assert 'of at most 576 x 256' in larger
    memory = [float(re.search(r'memory: +([\d.]+) MB', text)[1]) for text in (larger, exact)]
    assert memory[0] == pytest.approx(memory[1], rel=0.05) and larger != exact


def test_prototypes_of_the_command(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'distil.py'
    config.dump(path)
    bounds = run(monkeypatch, capsys, path, '--only-prototypes', '--images', 1000, '--boxes', 9000)
    assert 'at most 1,000' in bounds and 'parameters' not in bounds


def test_what_cannot_be_planned(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'distil.py'
    config.train_dataloader.dataset.ann_file = 'nothing.json'
    config.train_dataloader.dataset.data_root = str(tmp_path)
    config.dump(path)
    assert f'no such file: {tmp_path}/nothing.json' in run(monkeypatch, capsys, path)
    with pytest.raises(DataError, match='train_dataloader.dataset.ann_file: no such file'):
        run(monkeypatch, capsys, path, '--only-prototypes')
    with pytest.raises(ConfigError, match="optimizer.type = 'Nothing' is unknown"):
        run(monkeypatch, capsys, path, '--cfg-options', 'optim_wrapper.optimizer.type=Nothing')
    with pytest.raises(ConfigError, match='`model` of .* cannot be built: .*Nothing'):
        run(monkeypatch, capsys, path, '--cfg-options', 'model.type=Nothing')
    config.pop('train_cfg')
    config.dump(path)
    with pytest.raises(ConfigError, match='train_cfg'):
        run(monkeypatch, capsys, path)


def test_plain_detector(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'plain.py'
    config.model = detector('two_stage')
    config.dump(path)
    printed = run(monkeypatch, capsys, path)
    assert 'student' in printed and 'teacher' not in printed and 'images to run' not in printed
    with pytest.raises(ConfigError, match='generates no prototypes'):
        run(monkeypatch, capsys, path, '--only-prototypes')
