"""Checkpoints are read without executing code, and loaded completely or not at all."""

import argparse
import os
import sys
import types
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmdet.models import build_detector
from torch import nn

from gkd.compat import checkpoint as module
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.compat.weights import class_names, get_state_dict, load_strictly
from gkd.errors import CheckpointError


@pytest.fixture(params=['weights_only', 'restricted pickle'])
def reader(request, monkeypatch):
    """Both ways to read: of torch >= 2.6, and of older ones."""
    if request.param == 'restricted pickle':
        monkeypatch.setattr(module, '_FIRST_SAFE_TORCH', (99, 0))
    elif module._torch_version() < module._FIRST_SAFE_TORCH:
        pytest.skip('torch is older than 2.6')


@pytest.fixture(params=[True, False], ids=['zip', 'legacy'])
def save(request, tmp_path):
    """Write a checkpoint in torch's current or in its old format."""
    def write(content, name='checkpoint.pth'):
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return str(path)
    return write


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def training_checkpoint():
    """What mmcv's runner writes, numpy numbers included."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(1e-3))
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(epoch=1, iter=7, CLASSES=('tree', 'bush'), config='model = dict()', seed=0,
                  hook_msgs=dict(best_score=np.float64(0.25), last=np.float32(0.5),
                                 count=np.int64(3), seen=np.bool_(True)),
                  palette=np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)),
        state_dict=model.state_dict(), optimizer=optimizer.state_dict())


def test_training_checkpoint_comes_back(reader, save):
    written = training_checkpoint()
    read = load_checkpoint_file(save(written))
    assert read['meta']['hook_msgs'] == written['meta']['hook_msgs']
    assert type(read['meta']['hook_msgs']['best_score']) is np.float64
    assert np.array_equal(read['meta']['palette'], written['meta']['palette'])
    assert read['meta']['CLASSES'] == ('tree', 'bush')
    assert read['state_dict'].keys() == written['state_dict'].keys()
    assert read['state_dict']._metadata == written['state_dict']._metadata
    for name, value in written['state_dict'].items():
        assert torch.equal(read['state_dict'][name], value)
    moments = read['optimizer']['state'][0]['exp_avg']
    assert torch.equal(moments, written['optimizer']['state'][0]['exp_avg'])


def test_shared_half_and_parameter_tensors_come_back(reader, save):
    shared = torch.arange(6.0)
    written = dict(a=shared[:4], b=shared[2:], half=torch.ones(2, dtype=torch.half),
                   scale=nn.Parameter(torch.ones(1)), size=torch.Size([2, 3]), kind=torch.bfloat16)
    read = load_checkpoint_file(save(written))
    assert read['a'].untyped_storage().data_ptr() == read['b'].untyped_storage().data_ptr()
    assert read['half'].dtype == torch.half and isinstance(read['scale'], nn.Parameter)
    assert read['size'] == (2, 3) and read['kind'] is torch.bfloat16


def test_code_is_not_executed(reader, save, tmp_path):
    attack = Attack(tmp_path / 'attacked')
    for hidden in (attack, dict(weight=[attack]), np.array([attack], dtype=object)):
        path = save(dict(state_dict=OrderedDict(), meta=hidden))
        with pytest.raises(CheckpointError, match='could execute code') as error:
            load_checkpoint_file(path)
        assert path in str(error.value)
        assert not (tmp_path / 'attacked').exists()


def test_offending_type_is_named(reader, save):
    path = save(dict(state_dict=OrderedDict(), args=argparse.Namespace(lr=0.1)))
    with pytest.raises(CheckpointError, match=r'needs argparse\.Namespace, .*refused'):
        load_checkpoint_file(path)
    assert load_checkpoint_file(path, trust=True)['args'].lr == 0.1


class Statistics:
    """Pickles as ``getattr(owner, name)``, like a method of MMEngine's buffers."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.fixture
def history_buffer(monkeypatch):
    """A class that pickles under the name of MMEngine's, as long as a file is written."""
    kind = type('HistoryBuffer', (), {
        '__module__': 'mmengine.logging.history_buffer', 'mean': lambda self: None,
        'run': lambda self: None})
    for name in ('mmengine', 'mmengine.logging', 'mmengine.logging.history_buffer'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules['mmengine.logging.history_buffer'].HistoryBuffer = kind
    return kind


def without_mmengine():
    for name in [name for name in sys.modules if name.split('.')[0] == 'mmengine']:
        del sys.modules[name]


@pytest.mark.parametrize('trust', [False, True])
def test_checkpoint_of_mmdetection_3_comes_back(reader, save, history_buffer, trust):
    """As MMEngine's runner writes it, read where MMEngine is not installed."""
    buffer = history_buffer()
    buffer.__dict__.update(
        max_length=10, _log_history=np.array([0.5, 0.25]), _count_history=np.array([1, 1]),
        statistics_methods={name: Statistics(history_buffer, name)
                            for name in ('min', 'max', 'mean', 'current')})
    written = dict(
        meta=dict(epoch=1, iter=2, cfg='model = dict()', seed=0, mmengine_version='0.10.7',
                  dataset_meta=dict(classes=('tree', 'bush'), palette=[(1, 2, 3), (4, 5, 6)])),
        state_dict=OrderedDict(weight=torch.ones(2)),
        message_hub=dict(log_scalars=OrderedDict({'train/loss': buffer}), runtime_info={},
                         resumed_keys=OrderedDict({'train/loss': True})),
        param_schedulers=[dict(milestones=Counter([8, 11]), last_step=2)])
    path = save(written)
    without_mmengine()
    read = load_checkpoint_file(path, trust=trust)
    assert torch.equal(read['state_dict']['weight'], torch.ones(2))
    history = read['message_hub']['log_scalars']['train/loss']
    assert np.array_equal(history._log_history, [0.5, 0.25])
    assert read['param_schedulers'][0]['milestones'] == Counter([8, 11])
    assert class_names(read) == ('tree', 'bush')


@pytest.mark.parametrize('name', ['run', '__init__', '__reduce__', '__class__'])
def test_other_attributes_are_not_read_from_a_file(reader, save, history_buffer, name):
    path = save(dict(state_dict=OrderedDict(), a=Statistics(history_buffer, name)))
    without_mmengine()
    with pytest.raises(CheckpointError, match='could execute code'):
        load_checkpoint_file(path)


@pytest.mark.parametrize('owner', [OrderedDict, np.dtype, torch.Size])
def test_attributes_of_other_types_are_not_read_from_a_file(reader, save, owner):
    path = save(dict(state_dict=OrderedDict(), a=Statistics(owner, 'mean')))
    with pytest.raises(CheckpointError, match='could execute code|needs '):
        load_checkpoint_file(path)


def test_missing_package_of_a_trusted_file_is_named(reader, save, monkeypatch):
    package = types.ModuleType('detectors_of_others')
    package.Extra = type('Extra', (), {'__module__': 'detectors_of_others'})
    monkeypatch.setitem(sys.modules, 'detectors_of_others', package)
    path = save(dict(state_dict=OrderedDict(), extra=package.Extra()))
    monkeypatch.delitem(sys.modules, 'detectors_of_others')
    with pytest.raises(CheckpointError, match='package detectors_of_others, which is not inst'):
        load_checkpoint_file(path, trust=True)


@pytest.mark.parametrize('meta', [
    dict(CLASSES=['a', 'b']), dict(dataset_meta=dict(classes=('a', 'b'))),
    dict(dataset_meta=dict(CLASSES=('a', 'b')), CLASSES=None), dict(classes=('a', 'b'))])
def test_class_names_in_all_spellings(meta):
    assert class_names(dict(meta=meta)) == ('a', 'b')


@pytest.mark.parametrize('checkpoint', [
    {}, dict(meta=None), dict(meta=dict(dataset_meta=None)), dict(meta=dict(CLASSES=('a', 1)))])
def test_no_class_names(checkpoint):
    assert class_names(checkpoint) is None


def test_damaged_file(reader, save):
    path = save(training_checkpoint())
    content = open(path, 'rb').read()
    for damaged in (content[:100], content[:len(content) // 2], content[:-10]):
        with open(path, 'wb') as file:
            file.write(damaged)
        with pytest.raises(CheckpointError, match='[gG]et it again'):
            load_checkpoint_file(path)


@pytest.mark.parametrize('content', [
    b'<!DOCTYPE html><html>404</html>', b'version https://git-lfs.github.com/spec/v1\noid sha256:',
    b'PK\x03\x04' + bytes(50), bytes(1000), b''])
def test_something_else_than_a_checkpoint(reader, tmp_path, content):
    path = tmp_path / 'model.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='model.pth.*get it again|model.pth.*Get it again'):
        load_checkpoint_file(path)


def test_missing_file_folder_and_list(tmp_path):
    (tmp_path / 'epoch_2.pth').touch()
    with pytest.raises(CheckpointError, match=r'no such checkpoint: .*absent.pth; the newest in '
                                              r'its folder is .*epoch_2.pth$'):
        load_checkpoint_file(tmp_path / 'absent.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        load_checkpoint_file(tmp_path)
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds a list'):
        load_checkpoint_file(tmp_path / 'list.pth')


def test_state_dict_is_found():
    weights = OrderedDict([('module.conv.weight', torch.ones(1)),
                           ('module.submodule.bias', torch.ones(1))])
    for checkpoint in (dict(state_dict=weights, meta={}), dict(model=weights), weights):
        assert list(get_state_dict(checkpoint, 'file')) == ['conv.weight', 'submodule.bias']
    # Some modules keep plain numbers beside their tensors.
    assert get_state_dict(dict(state_dict=dict(weights, version=1)), 'file')['version'] == 1
    with pytest.raises(CheckpointError, match=r"file holds no weights.*\['meta', 'optimizer'\]"):
        get_state_dict(dict(meta={}, optimizer={}), 'file')


def detector(model):
    return build_detector(Config(dict(model=model)).model)


def retinanet(depth=18, **settings):
    model = small.retinanet(**settings)
    model['backbone']['depth'] = depth
    return detector(model)


def weights_of(model):
    return OrderedDict((name, torch.rand_like(value) if value.is_floating_point() else value)
                       for name, value in model.state_dict().items())


def refusal(model, state_dict):
    """The message of the error; asserts that nothing was loaded."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_strictly(model, state_dict, 'weights.pth')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert str(error.value).startswith('weights.pth does not fit the ')
    return str(error.value)


def test_fitting_weights_are_loaded():
    model = retinanet()
    weights = weights_of(model)
    wrapped = OrderedDict((f'module.{name}', value) for name, value in weights.items())
    for state_dict in (weights, dict(state_dict=weights), wrapped):
        for target in (retinanet(), MMDataParallel(retinanet(), device_ids=[])):
            load_strictly(target, state_dict, 'weights.pth')
            loaded = getattr(target, 'module', target).state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_averages_are_loaded_where_the_model_has_them():
    """A plain detector is given the weights alone."""
    averaged, plain = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    averaged.register_buffer('ema_weight', torch.full((1, 2), 5.0))
    weights = averaged.state_dict()
    load_strictly(plain, weights, 'weights.pth')
    averaged.ema_weight.zero_()
    load_strictly(averaged, {**weights, 'ema_weight': torch.full((1, 2), 5.0)}, 'weights.pth')
    assert (averaged.ema_weight == 5).all()


def test_old_weights_without_batch_counters_are_loaded():
    model = retinanet()
    weights = model.state_dict()
    counters = [name for name in weights if name.endswith('num_batches_tracked')]
    assert counters
    for name in counters:
        del weights[name]
    load_strictly(model, weights, 'weights.pth')  # with the versions of today's modules
    load_strictly(model, OrderedDict(weights), 'weights.pth')  # and without any


def test_missing_and_unexpected_keys_are_listed():
    model = retinanet()
    weights = weights_of(model)
    del weights['bbox_head.retina_cls.weight']
    weights['bbox_head.extra'] = torch.ones(1)
    message = refusal(model, weights)
    assert 'Missing in the file (1):\n  bbox_head.retina_cls.weight\n' in message
    assert 'Unexpected in the file (1):\n  bbox_head.extra' in message


def test_long_lists_are_cut():
    model = retinanet()
    weights = OrderedDict((name, value) for name, value in weights_of(model).items()
                          if 'neck' not in name and 'bbox_head' not in name)
    missing = len([name for name in model.state_dict() if name not in weights])
    message = refusal(model, weights)
    assert f'Missing in the file ({missing})' in message
    assert f'... and {missing - 8} more' in message
    assert message.count('\n') < 15


@pytest.mark.parametrize('file, model, cause', [
    (dict(num_classes=5), dict(num_classes=2),
     r'another number of classes .*20 in the file, 8 in the model'),
    (dict(depth=34), dict(depth=18),
     r'another depth \(blocks per stage \[3, 4, 6, 3\] in the file, \[2, 2, 2, 2\] in the model'),
    (dict(depth=18), dict(depth=34), r'\[2, 2, 2, 2\] in the file, \[3, 4, 6, 3\] in the model'),
    (dict(channels=8), dict(channels=16), r'other widths'),
])
def test_likely_cause_of_another_config(file, model, cause):
    message = refusal(retinanet(**model), weights_of(retinanet(**file)))
    assert __import__('re').search(cause, message), message


def test_number_of_classes_of_a_two_stage_detector():
    file, model = detector(small.faster_rcnn(num_classes=7)), detector(small.faster_rcnn())
    message = refusal(model, weights_of(file))
    assert 'another number of classes' in message
    assert 'roi_head.bbox_head.fc_cls.weight: (8, 32) in the file, (4, 32) in the model' in message


def test_likely_cause_of_another_kind_of_file():
    model = retinanet()
    weights = weights_of(model)

    distiller = OrderedDict((f'student.{name}', value) for name, value in weights.items())
    assert 'tools/export_student.py' in refusal(model, distiller)

    class Distiller(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = retinanet()

    assert '`model.student.checkpoint`' in refusal(Distiller(), weights)

    backbone = OrderedDict(
        (name[len('backbone.'):], value) for name, value in weights.items()
        if name.startswith('backbone.'))
    assert 'bare backbone' in refusal(model, dict(backbone, **{'fc.weight': torch.ones(2, 2)}))

    wrapped = {f'model.{name}': value for name, value in weights.items()}
    assert "'model....': saved from a wrapper" in refusal(model, wrapped)

    assert 'quite another model' in refusal(model, dict(weight=torch.ones(1)))


def test_modules_convert_weights_of_their_older_versions():
    class Renamed(nn.Module):
        """In version 1 its weight had another name, and was counted in percent."""

        _version = 2

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
            if metadata.get('version', 1) < 2:
                old = 'old' if prefix + 'old' in state_dict else 'weight'
                state_dict[prefix + 'weight'] = state_dict.pop(prefix + old) / 100
            super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    model = Renamed()
    load_strictly(model, dict(old=torch.full((2,), 50.0)), 'weights.pth')
    assert model.weight.tolist() == [0.5, 0.5]
    other = Renamed()
    load_strictly(other, model.state_dict(), 'weights.pth')
    assert other.weight.tolist() == [0.5, 0.5]
