"""Locks between processes, which the system releases in whatever way a process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import os.path as osp
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Optional, TextIO

from gkd.errors import ConfigError
from gkd.files import made_folder
from gkd.frameworks import logger
from gkd.progress import say

TRAINING = '.training.lock'  # in a work dir, while a training runs
TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def file_lock(path: str) -> Iterator[int]:
    """Lock ``path``, a file made only for this purpose, against other processes; wait for them.

    Yields:
        Descriptor of the file. A process that inherits it holds the lock, too.
    """
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'waiting for the process that holds {osp.relpath(path)}')
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # not every network disk has locks
            logger().warning(f'{path} cannot be locked ({error.strerror}): see that no other '
                             f'process does the same now.')
        yield file.fileno()


@contextmanager
def training_lock(work_dir: str, first: bool = True) -> Iterator[None]:
    """Keep other trainings out of a work dir, since they would write the same checkpoints.

    Only the process itself holds the lock: processes that load images for it may outlive it by
    seconds, and the next training need not wait for them. If the block fails, empty folders that
    were made for it are removed.

    Args:
        work_dir: The folder; it is made.
        first: Whether this is the first process of its training; the others hold nothing.

    Raises:
        ConfigError: Another training holds it.
        StorageError: The folder cannot be made or written into.
    """
    if not first:
        yield
        return
    path = osp.join(work_dir, TRAINING)
    with made_folder(work_dir), ExitStack() as stack:
        file = None
        while file is None:
            file = acquire(path)
        stack.callback(file.close)
        stack.callback(Path(path).unlink, missing_ok=True)
        yield


def acquire(path: str) -> Optional[TextIO]:
    """A lock file that this process holds; None if it was removed meanwhile.

    Raises:
        ConfigError: Another process holds it.
    """
    file = open(path, 'a+', encoding='utf-8')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            file.seek(0)
            holder = file.read()
            file.close()
            raise ConfigError(
                f'{osp.dirname(path)}: another training writes into this work dir'
                f'{f" ({holder})" if holder else ""}. Wait until it has ended, or name another '
                f'one with --work-dir.') from None
        logger().warning(f'{path} cannot be locked ({error.strerror}): see that no other training '
                         f'writes into this work dir.')
    if not osp.exists(path) or not osp.samestat(os.stat(path), os.fstat(file.fileno())):
        file.close()  # the training that made it has ended and removed it
        return None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    return file
