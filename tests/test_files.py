"""Files are whole or not there, and a damaged one is recognised and named."""

import os
import random
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gkd.commands.explain import explaining
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.errors import CheckpointError, RunError, StorageError
from gkd.files import (
    check_writable,
    load_tensors,
    make_folder,
    remove_unfinished,
    save_tensors,
    written_whole,
)
from gkd.prototypes import PrototypeBank
from gkd.prototypes.shares import join_shares

TENSORS = {'weight': torch.arange(300.0).reshape(3, 100), 'count': torch.tensor(7),
           'none': torch.zeros(0, 4)}


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / 'new' / 'file'
    with written_whole(path) as file:
        file.write(b'one')
        assert not path.exists()
    assert path.read_bytes() == b'one'
    with pytest.raises(KeyError), written_whole(path) as file:
        file.write(b'two')
        raise KeyError('stopped')
    assert path.read_bytes() == b'one' and names(path.parent) == ['file']


def in_fork(function, *args):
    """Run a function in a process of its own; returns its exit status or, negative, its signal."""
    child = os.fork()
    if child == 0:
        try:
            function(*args)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_under_a_limit(path):
    """Write more than this process may, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    with pytest.raises(StorageError, match=f'{path} cannot be written: File too large'), \
            written_whole(path) as file:
        file.write(b'x' * 30000)


def save_under_a_limit(path):
    """Let torch write more than this process may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    with pytest.raises(StorageError, match=f'{path} cannot be written: File too large'), \
            written_whole(path) as file:
        torch.save(torch.zeros(30000), file)


def write_a_log_under_a_limit(folder):
    """Write what others write, more than this process may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    with pytest.raises(StorageError, match='a file, in the work dir or in .* cannot be written: '
                                           'File too large. Make room'), explaining():
        (folder / 'log').write_bytes(b'x' * 30000)


def test_a_full_disk_is_no_defect(tmp_path):
    assert in_fork(write_a_log_under_a_limit, tmp_path) == 0
    with pytest.raises(StorageError, match='closed/log: Permission denied. Name another place'), \
            explaining():
        raise PermissionError(13, 'Permission denied', 'closed/log')


def fail():
    raise FileNotFoundError(2, 'No such file or directory', 'gone_\udce9.jpg')


def test_the_traceback_of_what_no_check_foresaw_is_in_the_file_that_is_named(
        tmp_path, monkeypatch):
    """Nothing has opened a log yet, and processes but the first never do."""
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with pytest.raises(RunError) as caught, explaining():
        fail()
    kept, = tmp_path.iterdir()
    assert str(caught.value).endswith(f'The whole traceback is in {kept}')
    assert 'in fail' in kept.read_text() and 'gone_' in kept.read_text()

    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'gone'))
    with pytest.raises(RunError, match='gone_.*\n.*traceback could not be kept'), explaining():
        fail()


def write_until_killed(path):
    """Write, and kill this process before it is done."""
    with written_whole(path) as file:
        file.write(b'x' * 30000)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('function, status, left', [
    (write_under_a_limit, 0, 1), (save_under_a_limit, 0, 1),
    (write_until_killed, -signal.SIGKILL, 2)])
def test_full_disk_and_kill_leave_the_older_file(tmp_path, function, status, left):
    path = tmp_path / 'epoch_3.pth'
    path.write_bytes(b'older')
    assert in_fork(function, path) == status
    assert path.read_bytes() == b'older' and len(names(tmp_path)) == left
    (tmp_path / '.hidden.tmp').write_text('not ours')
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ['.hidden.tmp', path.name]


def test_features_that_are_gone_at_once_are_told_of(tmp_path):
    with pytest.raises(StorageError, match='student_features_0_of_1.* cannot be read, although'):
        join_shares(str(tmp_path), 'student', 'key', [2])


def test_a_file_that_could_not_be_written_in_the_end_is_refused_at_the_start(
        tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    check_writable(str(tmp_path / 'file'))
    check_writable(str(tmp_path / 'new' / 'folder' / 'file'))
    for path, says in ((tmp_path, 'is a folder; name a file'),
                       (tmp_path / 'file' / 'new' / 'file', 'Not a directory')):
        with pytest.raises(StorageError, match=f'{path} .*{says}'):
            check_writable(str(path))
    monkeypatch.setattr('os.access', lambda path, how: False)  # tests may run as root
    with pytest.raises(StorageError, match='new/file cannot be written: Permission denied'):
        check_writable(str(tmp_path / 'new' / 'file'))
    assert names(tmp_path) == ['file']


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    """Else the first file for safetensors in it would be missing, in the middle of a run."""
    with pytest.raises(StorageError, match=r"w.udce9': its name is no text in UTF-8. Name ano"):
        make_folder(f'{tmp_path}/w\udce9')
    make_folder(f'{tmp_path}/wé x')
    assert names(tmp_path) == ['wé x']


def test_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StorageError, match='file/bank cannot be written'):
        save_tensors(tmp_path / 'file' / 'bank', TENSORS, {})


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name])
        for name in one)


def write_checkpoint(path):
    torch.save(dict(meta=dict(epoch=3), state_dict=TENSORS), path)


def write_bank(path):
    generator = torch.Generator().manual_seed(0)
    PrototypeBank([torch.rand(3, 4, generator=generator)], [torch.rand(3, 5, generator=generator)],
                  [torch.tensor([0, 2, 3])], dict(epoch='2', origins='[[1, 2]]')).save(path)


def write_cache(path):
    save_tensors(path, TENSORS, dict(fingerprint='1234'))


def read_checkpoint(path):
    checkpoint = load_checkpoint_file(path)
    return checkpoint['state_dict'], checkpoint['meta']


def read_bank(path):
    bank = PrototypeBank.load(path)
    tensors = {name: getattr(bank, name)[0] for name in ('student', 'teacher', 'offsets')}
    return tensors, bank.metadata


def read_cache(path):
    tensors, metadata = load_tensors(path, 'Mend it.')
    if 'sha256' not in metadata:
        raise CheckpointError(f'{path}: no checksum')
    return tensors, metadata


@pytest.mark.parametrize('write, read', [(write_checkpoint, read_checkpoint),
                                         (write_bank, read_bank), (write_cache, read_cache)])
@pytest.mark.parametrize('damage', ['flip', 'cut', 'zeros', 'append'])
def test_damaged_file_is_refused_by_name_or_reads_the_same(tmp_path, write, read, damage):
    path = tmp_path / 'file'
    write(path)
    whole = path.read_bytes()
    tensors, metadata = read(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(100):
        position = rng.randrange(len(whole))
        content = bytearray(whole)
        if damage == 'flip':
            content[position] ^= 1 << rng.randrange(8)
        elif damage == 'cut':
            del content[position:]
        elif damage == 'zeros':  # what a file system may leave of a file after a power failure
            content[position:] = bytes(len(content) - position)
        else:
            content += bytes(rng.randrange(1, 100))
        path.write_bytes(content)
        try:
            found, others = read(path)
            assert same(found, tensors) and others == metadata
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
    # A flip can hit what says nothing: padding, dates. What is appended may be left unread.
    assert refused >= dict(cut=100, flip=50, zeros=80, append=0)[damage]


def test_bank_of_an_earlier_release_is_read(tmp_path):
    save_file({'student.0': torch.ones(1, 2), 'teacher.0': torch.ones(1, 3),
               'offsets.0': torch.tensor([0, 1])}, tmp_path / 'bank',
              dict(format='gkd.PrototypeBank', format_version='1', epoch='1'))
    assert PrototypeBank.load(tmp_path / 'bank').metadata == dict(epoch='1')
