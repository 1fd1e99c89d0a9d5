"""Run the project's own tools in processes of their own, several at once."""

from __future__ import annotations

import os
import os.path as osp
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Optional

import torch

from gkd.commands.ending import SPOKEN_FOR, STOPPED
from gkd.errors import GKDError
from gkd.progress import say
from gkd.repository import REPOSITORY

children: set[int] = set()  # processes of tools
starting = threading.Lock()  # held while one is started
ending = threading.Event()  # set when no other may be started


class StageFailed(GKDError):
    """A stage ended with an error, which it has printed itself."""


def run_tool(command: Sequence[str], environment: Optional[dict] = None,
             log: Optional[str] = None, lock: Optional[int] = None) -> tuple[int, float]:
    """Run one of the tools in a process of its own.

    Args:
        command: Name of the file in ``tools/``, and its arguments.
        environment: Variables of the environment to set.
        log: File to append all output to, instead of showing it.
        lock: Descriptor of a lock. The tool holds it, too, should this process be killed.

    Returns:
        Exit status, and peak resident memory of the process in MiB.

    Raises:
        StageFailed: All processes are being ended.
    """
    with open(log, 'a') if log else nullcontext() as file, starting:
        if ending.is_set():
            raise StageFailed('stopped')
        process = subprocess.Popen(
            [sys.executable, osp.join(REPOSITORY, 'tools', command[0]), *command[1:]],
            env={**os.environ, **({} if log else {SPOKEN_FOR: '1'}), **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT if log else None, pass_fds=() if lock is None else (lock,))
        children.add(process.pid)
    try:
        # Unlike Popen.wait, it returns what the process has used.
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        children.discard(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 2 ** (20 if sys.platform == 'darwin' else 10)


def how_it_ended(status: int) -> str:
    """In words for a message: that a process failed, or which signal ended it.

    >>> how_it_ended(2), how_it_ended(-11)
    ('failed', 'was ended by SIGSEGV')
    """
    if status >= 0:
        return 'failed'
    name = signal.Signals(-status).name
    return f'was ended by {name}{" (out of memory?)" if name == "SIGKILL" else ""}'


@contextmanager
def children_end_too() -> Iterator[None]:
    """End the processes of all tools when this one is interrupted, or ended by SIGTERM."""
    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)  # until the end: `timeout` sends it twice
        sys.exit(128 + number)

    in_charge = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_charge else None
    ending.clear()
    try:
        yield
    except BaseException as error:
        with starting:
            ending.set()
            for child in [*children]:  # those that end meanwhile take themselves out
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
        if isinstance(error, SystemExit):
            say(STOPPED)
        raise
    finally:
        if in_charge and signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def shares(jobs: int) -> list[dict[str, str]]:
    """Variables of the environment that share the machine between processes.

    Args:
        jobs: Processes at once.

    Returns:
        For each process its number of threads, if the user has not set it, and a GPU in turn.
    """
    if jobs == 1:
        return [{}]
    threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, (os.cpu_count() or 1) // jobs))
    gpus = [gpu for gpu in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if gpu] \
        or list(map(str, range(torch.cuda.device_count())))
    return [dict(OMP_NUM_THREADS=threads,
                 **(dict(CUDA_VISIBLE_DEVICES=gpus[job % len(gpus)]) if gpus else {}))
            for job in range(jobs)]


def at_once() -> int:
    """How many small trainings to run at once: two without a GPU, each runs best on one core."""
    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def cfg_option(key: str, value: Any) -> str:
    """KEY=VALUE for ``--cfg-options``, in quotes where the value would be read as a list.

    Example:
        >>> cfg_option('load_from', 'work/latest.pth'), cfg_option('load_from', 'a, b/latest.pth')
        ('load_from=work/latest.pth', 'load_from="a, b/latest.pth"')
    """
    return f'{key}="{value}"' if re.search(r'[,\s]', str(value)) else f'{key}={value}'
