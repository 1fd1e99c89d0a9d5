"""Two trainings never write into one work dir."""

import os
from unittest import mock

import pytest
from helpers.other_training import other_training

from gkd import locks
from gkd.errors import ConfigError
from gkd.locks import TRAINING, acquire, training_lock


def test_a_second_training_is_refused_until_the_first_has_ended(tmp_path):
    work = str(tmp_path / 'work')
    with other_training(work) as holder:
        with pytest.raises(ConfigError, match=rf'work: another training writes .* \(process '
                                              rf'{holder.pid} on .*--work-dir'), \
                training_lock(work):
            pass
        with training_lock(work, first=False):  # one of the training's own processes
            pass
        holder.kill()
        holder.join()
        with training_lock(work):  # at once
            pass
    assert os.listdir(work) == []


def test_a_training_that_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError), training_lock(str(tmp_path / 'new' / 'work')):
        raise ConfigError('nothing')
    assert not (tmp_path / 'new').exists()


def test_a_lock_that_its_holder_has_just_removed_is_none(tmp_path):
    """Between opening the file and locking it."""
    path = str(tmp_path / TRAINING)

    def lock(file, how):
        os.unlink(path)

    with mock.patch.object(locks.fcntl, 'lockf', lock):
        assert acquire(path) is None
    with acquire(path):
        assert os.path.exists(path)


def test_a_disk_without_locks_is_told_of(tmp_path):
    with mock.patch.object(locks.fcntl, 'lockf', mock.Mock(side_effect=OSError(37, 'No locks'))), \
            mock.patch.object(locks, 'logger') as logger, training_lock(str(tmp_path)):
        pass
    assert 'cannot be locked (No locks)' in logger().warning.call_args[0][0]


def test_work_that_one_process_does_alone_goes_on_where_there_are_no_locks(tmp_path):
    with mock.patch.object(locks.fcntl, 'flock', mock.Mock(side_effect=OSError(38, 'No locks'))), \
            mock.patch.object(locks, 'logger') as logger, locks.file_lock(str(tmp_path / 'lock')):
        pass
    assert 'cannot be locked (No locks)' in logger().warning.call_args[0][0]
