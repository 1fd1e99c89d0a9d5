"""PrototypeBank: what it accepts, and that a file is whole or refused."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import gkd.bank as bank_module
from gkd.errors import CheckpointError, StorageError
from gkd.files import CHECKSUM
from gkd.prototypes import PrototypeBank


def make_bank(**changes):
    offsets = torch.tensor([0, 2, 2, 3])
    content = dict(
        student=[torch.rand(3, 4), torch.rand(0, 4)],
        teacher=[torch.rand(5, 3).T, torch.rand(0, 5)],  # not contiguous
        offsets=[offsets, torch.zeros_like(offsets)],
        metadata={'epoch': '3', 'classes': '["a", "b"]'},
    )
    return PrototypeBank(**{**content, **changes})


def assert_equal(one, other):
    for name in ('student', 'teacher', 'offsets'):
        pairs = list(zip(getattr(one, name), getattr(other, name)))
        assert len(pairs) == one.num_levels == other.num_levels
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in pairs)
    assert one.metadata == other.metadata


def test_counts_levels_and_classes():
    bank = make_bank()
    assert (bank.num_levels, bank.num_classes) == (2, 3)


def test_comes_back_from_its_file(tmp_path):
    bank = make_bank()
    path = tmp_path / 'new' / 'bank.safetensors'
    bank.save(path)
    assert_equal(PrototypeBank.load(str(path)), bank)
    assert os.listdir(path.parent) == [path.name]


def test_comes_back_from_a_checkpoint():
    bank = make_bank()
    state = bank.state_dict()
    # The last is missing in checkpoints of before.
    assert list(state) == ['student', 'teacher', 'offsets', 'metadata', 'class_features']
    assert_equal(PrototypeBank.from_state_dict(state), bank)


def test_levels_may_share_tensors(tmp_path):
    features, offsets = torch.rand(3, 4), torch.tensor([0, 3])
    bank = PrototypeBank([features] * 2, [features] * 2, [offsets] * 2)
    bank.save(tmp_path / 'bank')
    assert_equal(PrototypeBank.load(tmp_path / 'bank'), bank)


def test_moves_with_everything_it_holds():
    bank = make_bank(class_features=[torch.rand(3, 2), torch.rand(0, 2)])
    moved = bank.to('meta')
    for name in ('student', 'teacher', 'offsets', 'class_features'):
        assert [tensor.device.type for tensor in getattr(moved, name)] == ['meta', 'meta']
        assert [tensor.device.type for tensor in getattr(bank, name)] == ['cpu', 'cpu']
    assert moved.metadata == bank.metadata and moved.num_classes == 3


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'student': [torch.rand(3, 4)]}, '1, 2 and 2'),
        ({'student': [], 'teacher': [], 'offsets': []}, 'at least one'),
        ({'student': [torch.rand(2, 4), torch.rand(0, 4)]}, r'student\[0\] has 2 .* ends at 3'),
        ({'student': [torch.rand(4, 4), torch.rand(0, 4)]}, r'student\[0\] has 4 .* ends at 3'),
        ({'teacher': [torch.rand(3, 4), torch.rand(4)]}, r'teacher\[1\].*shape \(4,\)'),
        ({'offsets': [torch.tensor([0, 2, 1, 3]), torch.zeros(4).long()]}, r'offsets\[0\].*fall'),
        ({'offsets': [torch.tensor([1, 2, 2, 3]), torch.zeros(4).long()]}, r'offsets\[0\].*0'),
        ({'offsets': [torch.tensor([0, 2, 2, 3]), torch.zeros(3).long()]}, r'offsets\[1\] has 2'),
        ({'offsets': [torch.tensor([0.0, 3.0]), torch.zeros(2)]}, r'offsets\[0\].*float32'),
        ({'metadata': {'format': 'other'}}, "'format' is reserved"),
        ({'metadata': {CHECKSUM: 'other'}}, f"'{CHECKSUM}' is reserved"),
    ],
)
def test_refuses_parts_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make_bank(**changes)


def test_refuses_metadata_that_is_no_text():
    with pytest.raises(TypeError, match="'epoch': 3"):
        make_bank(metadata={'epoch': 3})


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'bank'
    bank = make_bank()
    bank.save(path)

    def full_disk(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(bank_module.os, 'fsync', full_disk)
    with pytest.raises(StorageError, match='bank cannot be written: No space'):
        make_bank(metadata={}).save(path)
    assert os.listdir(tmp_path) == ['bank']
    assert_equal(PrototypeBank.load(path), bank)


@pytest.fixture(scope='module')
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp('bank') / 'bank'
    make_bank().save(path)
    return path.read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_refuses_a_file_that_was_cut_short(content, tmp_path_factory, data):
    length = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp('cut') / 'bank'
    path.write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=str(path)):
        PrototypeBank.load(path)


def test_refuses_what_is_no_bank(tmp_path):
    path = tmp_path / 'weights.safetensors'
    for make, message in (
        (lambda: None, 'No such file'),
        (lambda: path.write_text('a text'), 'cannot be read'),
        (lambda: save_file({'weight': torch.rand(3)}, path), 'not a prototype bank'),
        (
            lambda: save_file({'weight': torch.rand(3)}, path,
                              {'format': 'gkd.PrototypeBank', 'format_version': '99'}),
            'version 99',
        ),
        (
            lambda: save_file(
                {
                    'student.0': torch.rand(2, 3),
                    'teacher.0': torch.rand(2, 3),
                    'other': torch.rand(1),
                },
                path,
                {'format': 'gkd.PrototypeBank', 'format_version': '1'},
            ),
            'offsets.0',
        ),
        (
            lambda: save_file(
                {
                    'student.0': torch.rand(2, 3),
                    'teacher.0': torch.rand(2, 3),
                    'offsets.0': torch.tensor([0, 5]),
                },
                path,
                {'format': 'gkd.PrototypeBank', 'format_version': '1'},
            ),
            'ends at 5',
        ),
    ):
        make()
        with pytest.raises(CheckpointError, match=message) as error:
            PrototypeBank.load(path)
        assert str(path) in str(error.value)
    with pytest.raises(CheckpointError):
        PrototypeBank.load(tmp_path)
