"""The configs of configs/mmdet3: all are read, and two pairs make a training step."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_detectors as small
from mmengine.config import Config
from small_experiments import CLASSES, IMAGES, detector

from gkd.detectors.entries import nested
from gkd.detectors.source import DetectorSource, sources_of
from gkd.engine.config import load_config
from gkd.engine.data import build_part
from gkd.frameworks import build_detector, synthetic_batch

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob('configs/mmdet3/gkd_*_coco.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_read(path):
    config = load_config(str(path))
    assert config.model.type == 'Distiller' and config.train_cfg.max_epochs in (24, 300)
    for role in ('teacher', 'student'):
        assert DetectorSource.parse(config.model[role], f'model.{role}').model_config().type
    hooks = {hook.type for hook in config.custom_hooks}
    assert {'PrototypeHook', 'FiniteLossHook', 'ReportHook'} <= hooks
    # What the student's own config trains with stays.
    assert {'EMAHook', 'PipelineSwitchHook'} <= hooks or 'rtmdet' not in path.stem
    assert config.default_hooks.checkpoint.type == 'ResumableCheckpointHook'
    assert config.default_hooks.logger.type == 'LoggerHook'


def read(path):
    return Config.fromfile(path, lazy_import=False)


OF_BOTH = {path.relative_to(ROOT / 'configs/mmdet3') for folder in ('digits', 'quickstart')
           for path in ROOT.glob(f'configs/mmdet3/{folder}/*.py')}


def test_the_quickstart_has_the_same_configs_as_with_mmdetection_2():
    assert OF_BOTH == {path.relative_to(ROOT / 'configs') for folder in ('digits', 'quickstart')
                       for path in ROOT.glob(f'configs/{folder}/*.py')}


@pytest.mark.parametrize('name', sorted(OF_BOTH), ids=lambda path: path.stem)
def test_quickstart_is_that_of_mmdetection_2(name):
    """The same recipe, as both write it down."""
    ours, theirs = (read(ROOT / folder / name) for folder in ('configs/mmdet3', 'configs'))
    preprocessor = ours.preprocessor
    if ours.model.type == 'Distiller':
        for role in ('teacher', 'student'):
            source, other = ours.model[role], theirs.model[role]
            assert source.config == other.config.replace('configs/', 'configs/mmdet3/')
            last = f'epoch_{read(ROOT / source.config).train_cfg.max_epochs}.pth'
            assert source.checkpoint == other.checkpoint.replace(
                'quickstart/', 'quickstart/mmdet3/').replace('latest.pth', last)
            source.update(other)
    else:
        assert ours.model.pop('data_preprocessor') == preprocessor
    assert ours.model.to_dict() == theirs.model.to_dict()
    assert_same_data(ours, theirs)
    normalisation = theirs.img_norm_cfg
    assert (preprocessor.mean, preprocessor.std, preprocessor.bgr_to_rgb) == (
        normalisation.mean, normalisation.std, normalisation.to_rgb)
    assert preprocessor.pad_size_divisor == setting(theirs.test_pipeline, 'Pad', 'size_divisor')

    assert ours.optim_wrapper.optimizer == theirs.optimizer
    assert 'clip_grad' not in ours.optim_wrapper and theirs.optimizer_config.grad_clip is None
    warmup, decay = ours.param_scheduler
    rates = theirs.lr_config
    assert (warmup.type, warmup.start_factor, warmup.end, warmup.by_epoch) == (
        'LinearLR', rates.warmup_ratio, rates.warmup_iters, False)
    assert (decay.type, decay.eta_min, decay.convert_to_iter_based) == (
        f'{rates.policy}LR', rates.min_lr, not rates.by_epoch)
    assert ours.train_cfg.max_epochs == theirs.runner.max_epochs
    assert ours.train_cfg.val_interval == theirs.evaluation.interval
    for key in ('interval', 'max_keep_ckpts'):
        assert ours.default_hooks.checkpoint[key] == theirs.checkpoint_config[key]
    assert ours.default_hooks.logger.interval == theirs.log_config.interval
    assert ours.cpu_channels_last == theirs.cpu_channels_last


def assert_same_data(ours, theirs):
    """The same files and classes, in batches of the same size, seen in the same way."""
    assert ours.train_dataloader.batch_size == theirs.data.samples_per_gpu
    assert ours.val_dataloader == ours.test_dataloader
    assert ours.val_evaluator == ours.test_evaluator
    assert ours.val_evaluator.ann_file == theirs.data.val.ann_file
    for split in ('train', 'val', 'test'):
        dataset, other = ours[f'{split}_dataloader'].dataset, theirs.data[split]
        assert dataset.type == other.type
        assert dataset.data_root + dataset.ann_file == other.ann_file
        assert dataset.data_root + dataset.data_prefix.img == other.img_prefix
        assert dataset.metainfo.classes == other.classes
        size = setting(other.pipeline, 'MultiScaleFlipAug', 'img_scale') or \
            setting(other.pipeline, 'Resize', 'img_scale')
        assert setting(dataset.pipeline, 'Resize', 'scale') == size
        assert (setting(dataset.pipeline, 'Resize', 'keep_ratio')
                == setting(other.pipeline, 'Resize', 'keep_ratio'))
        assert (setting(dataset.pipeline, 'RandomFlip', 'prob') or 0) == (
            setting(other.pipeline, 'RandomFlip', 'flip_ratio') or 0)


def setting(pipeline, kind, key):
    """A setting of the first step of a kind, None if no such step sets it."""
    return next((step.get(key) for step in nested(pipeline) if step.get('type') == kind), None)


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in CONFIGS if path.stem.startswith(
    ('gkd_faster-rcnn', 'gkd_rtmdet_s'))], ids=lambda path: path.stem)
def test_pair_makes_a_step(path):
    """With random weights; ResNets as shallow as can be."""
    model = load_config(str(path)).model
    for role in ('teacher', 'student'):
        model[role].checkpoint = None
        if 'rtmdet' not in path.stem:
            model[role].overrides = {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512]}
    distiller = build_detector(model).train()
    distiller.bank = small.random_bank(distiller.pair)
    boxes = torch.tensor([[8., 8, 60, 60], [70, 64, 120, 122]])
    losses = distiller.losses(synthetic_batch(torch.randn(2, 3, 128, 128), boxes,
                                              torch.tensor([3, 70])))
    total = sum(value for values in losses.values()
                for value in (values if isinstance(values, list) else [values]))
    total.backward()
    assert {'loss_global', 'loss_local_fg', 'loss_local_bg'} <= losses.keys()
    assert all(parameter.grad.isfinite().all() for parameter in distiller.parameters()
               if parameter.grad is not None)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_tool_knows_the_checkpoints_of_a_config(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['checkpoints.py', 'list', str(path)])
    runpy.run_path(str(ROOT / 'tools' / 'checkpoints.py'))['main']()
    listed = capsys.readouterr().out
    for source in sources_of(load_config(str(path)).model):
        assert source.checkpoint is None or Path(source.checkpoint).name in listed


def test_the_config_of_a_pair_of_ones_own(annotations, tmp_path, monkeypatch):
    """As docs/your_own_detector.md writes it."""
    page = (ROOT / 'docs' / 'your_own_detector.md').read_text(encoding='utf-8')
    code = page.split('<!-- run by the tests: mmdet3 -->\n```python\n')[1].split('```')[0]
    code = code.replace("'bolt', 'nut', 'washer'", repr(CLASSES)[1:-1])
    (tmp_path / 'config.py').write_text(code)
    folder = tmp_path / 'data' / 'parts'
    shutil.copytree(annotations.parent, folder / 'images')
    for part in ('train', 'val'):
        shutil.copy(annotations, folder / f'{part}.json')
    monkeypatch.chdir(tmp_path)
    config = load_config('config.py')
    for part in ('train', 'val', 'test'):
        assert len(build_part(config, part).dataset) == IMAGES
    for role in ('teacher', 'student'):
        source = DetectorSource.parse(config.model[role], role)
        assert source.checkpoint == f'checkpoints/my_{role}.pth'
        assert source.model_config().bbox_head.num_classes == len(CLASSES)
    config.model.update(teacher=dict(config=detector('one_stage', 24), checkpoint=None),
                        student=dict(config=detector('one_stage')))
    assert build_detector(config.model).pair.num_classes == len(CLASSES)
    assert {hook.type for hook in config.custom_hooks} == {
        'PrototypeHook', 'FiniteLossHook', 'ReportHook'}
