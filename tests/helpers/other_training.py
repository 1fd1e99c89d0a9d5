"""Another process that trains, as it were, in a work dir."""

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager

from gkd.locks import training_lock

FORK = multiprocessing.get_context('fork')


@contextmanager
def other_training(work_dir):
    """Let another process hold a work dir, with one that loads images and outlives it."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(str(work_dir), there))
    process.start()
    loader = here.recv()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        os.kill(loader, signal.SIGKILL)


def hold(work_dir, ready):
    """Be that process."""
    with training_lock(work_dir):
        loader = FORK.Process(target=time.sleep, args=(60,))
        loader.start()
        ready.send(loader.pid)
        time.sleep(60)
