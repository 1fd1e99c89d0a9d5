"""The file of a step that is kept: what it holds comes back, and nothing else is read."""

import json
import math

import numpy as np
import pytest
import torch

from gkd.errors import CheckpointError, NumericalError, StorageError
from gkd.files import save_tensors
from gkd.finite.hook import kept
from gkd.finite.step import FORMAT, TYPES, KeptStep
from gkd.finite.weights import check_weights
from gkd.randomness import random_state


def step(batch):
    weight = torch.rand(4, 3)
    return KeptStep(dict(weight=weight, shared=weight, part=weight[:, 1]), batch, random_state(),
                    dict(loss_cls=math.nan, loss=-math.inf), progress=0.25)


def same(one, other):
    """Whether two values are equal, in their types and those of arrays too."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_step_comes_back(tmp_path):
    batch = dict(
        img=torch.rand(2, 3, 4, 5, dtype=torch.float16), empty=torch.zeros(0, 4),
        flags=torch.tensor([True, False]), number=torch.tensor(3),
        metas=[dict(name='é.png', shape=(4, 5, 3), scale=np.float32([1.5, 2]), flip=False,
                    nothing=None, pixels=np.arange(6, dtype=np.uint8).reshape(2, 3)[:, 1])])
    before = step(batch)
    before.save(str(tmp_path / 'step.safetensors'))
    after = KeptStep.load(str(tmp_path / 'step.safetensors'))
    assert same(after.batch, batch) and same(after.weights, before.weights)
    assert same(after.random, before.random)
    assert math.isnan(after.losses['loss_cls']) and after.losses['loss'] == -math.inf
    assert (after.bank, after.progress, after.teacher_columns) == (None, 0.25, None)


def test_what_is_not_finite_is_named_by_its_place():
    kept_step = step(dict(img=torch.tensor([1, math.inf]), boxes=[torch.ones(1), torch.ones(0)]))
    kept_step.weights['bias'] = torch.tensor(math.nan)
    kept_step.bank = dict(student=[torch.ones(1), torch.tensor([-math.inf])])
    assert kept_step.broken() == ['weights/bias', 'batch/img', 'bank/student/1']


def test_masks_come_back(tmp_path):
    pixels = (np.random.rand(2, 6, 8) > 0.5).astype(np.uint8)
    polygons = [[np.array([0., 0., 4., 0., 4., 3.])], [np.arange(6.), np.arange(8.)]]
    masks = [TYPES['BitmapMasks'](pixels, 6, 8), TYPES['PolygonMasks'](polygons, 6, 8)]
    step(masks).save(str(tmp_path / 'step.safetensors'))
    bitmap, polygon = KeptStep.load(str(tmp_path / 'step.safetensors')).batch
    assert same([bitmap.masks, bitmap.height, bitmap.width], [pixels, 6, 8])
    assert same([polygon.masks, polygon.height, polygon.width], [polygons, 6, 8])


def test_what_cannot_be_kept_does_not_hide_what_is_wrong(tmp_path):
    path = tmp_path / 'step.safetensors'
    assert kept(step(dict(found=[1, {2}])), str(path)) == \
        'The step could not be kept: step/batch/found/1 is a set.'
    assert not path.exists()
    (tmp_path / 'file').touch()
    assert 'could not be kept: ' in kept(step({}), str(tmp_path / 'file' / 'step.safetensors'))
    assert kept(step({}), str(path)).endswith(f'tools/replay.py CONFIG {path}') and path.exists()


def test_a_set_is_refused_by_its_place():
    with pytest.raises(StorageError, match='step/batch is a set'):
        step({1}).save('unused')


@pytest.mark.parametrize('content', [
    'no JSON', 'null', '[]', '{"dict": [["weights", 1]]}', '{"tensor": "gone"}',
    '{"object": "Popen", "parts": {"dict": [["args", "true"]]}}',
    '{"object": "BitmapMasks", "parts": {"dict": [["masks", 1], ["height", 1], ["width", 1]]}}',
    '{"unknown": 1}'])
def test_what_is_no_step_is_refused(tmp_path, content):
    path = tmp_path / 'step.safetensors'
    save_tensors(path, dict(a=torch.ones(1)), {**FORMAT, 'content': content})
    with pytest.raises(CheckpointError, match='is a broken step .* Name a file not_finite_'):
        KeptStep.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / 'step.safetensors'
    with pytest.raises(CheckpointError, match='Name a file not_finite_'):
        KeptStep.load(path)
    torch.save({}, path)
    with pytest.raises(CheckpointError, match='cannot be read as a safetensors file'):
        KeptStep.load(path)
    save_tensors(path, dict(a=torch.ones(1)), {**FORMAT, 'format_version': '2',
                                               'content': json.dumps({})})
    with pytest.raises(CheckpointError, match='holds no step that this release reads'):
        KeptStep.load(path)


def test_statistics_are_weights_that_must_be_finite():
    layer = torch.nn.BatchNorm1d(2)
    check_weights(layer, 'clip')
    layer.running_var[1] = math.inf
    with pytest.raises(NumericalError, match=r'1 weights .*, first running_var; .*\(clip\)'):
        check_weights(layer, 'clip')
