"""The configs of configs/mmdet3: all are read, and two pairs make a training step."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_detectors as small
from mmengine.config import Config

from gkd.detectors.source import DetectorSource, sources_of
from gkd.engine.commands import load_config
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
    return Config.fromfile(ROOT / path, lazy_import=False)


@pytest.mark.parametrize('family', ['retinanet', 'faster_rcnn'])
def test_quickstart_is_that_of_mmdetection_2(family):
    """The same detectors, as both read them."""
    for name in ('efficientnet-lite0', 'r18-w8'):
        ours, theirs = (read(f'{folder}/{family}_{name}_fpn_digit-scenes.py')
                        for folder in ('configs/mmdet3/digits', 'configs/digits'))
        assert ours.model.pop('data_preprocessor').mean == theirs.img_norm_cfg.mean
        assert ours.model.to_dict() == theirs.model.to_dict()
        assert ours.train_cfg.max_epochs == theirs.runner.max_epochs
        assert ours.optim_wrapper.optimizer == theirs.optimizer
    name = f'gkd_{family}_efficientnet-lite0_r18-w8_fpn_digit-scenes.py'
    ours, theirs = (read(f'{folder}/{name}')
                    for folder in ('configs/mmdet3/digits', 'configs/digits'))
    assert ours.model.prototypes == theirs.model.prototypes
    assert ours.train_cfg.max_epochs == theirs.runner.max_epochs


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
