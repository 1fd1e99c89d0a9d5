"""How a command ends: errors are messages, and the exit status shows their kind."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Callable, Optional

from gkd.collectives import leave_group
from gkd.commands.explain import describe, keep_traceback, lost_another_process
from gkd.commands.options import rank_of
from gkd.errors import GKDError, RunError
from gkd.files import naming_storage
from gkd.progress import silence

# Seconds in which the launcher ends the other processes after the first one has failed.
LAUNCHER_REACTS = 5
STOPPED = ('\nstopped. Run the same command again to continue; a training resumes from its last '
           'checkpoint.')
# Set for a command that another one runs in the same terminal, and speaks for.
SPOKEN_FOR = 'GKD_SPOKEN_FOR'


def run(main: Callable[[], None]) -> None:
    """Run a tool; an error that the user can correct is one message and exit status 2.

    An unforeseen error is one message, too, with exit status 1; a file or the log keeps its
    traceback. From the status ``tools/torchrun.py`` decides whether to restart the processes.

    If there are several processes, only the first one prints. It also reports the errors that all
    of them meet: the others wait before they report theirs, and meanwhile the launcher ends them.

    Args:
        main: The tool.
    """
    # Slurm numbers the processes of other commands, too.
    rank = rank_of('slurm' if 'slurm' in sys.argv else 'pytorch')
    name = f'error in process {rank}' if rank else 'error'
    try:
        with reporting_sigterm(), naming_storage(), (
                silence() if rank else contextlib.nullcontext()):
            tolerate_other_encodings()
            main()
        leave_group()
    except GKDError as error:
        time.sleep(LAUNCHER_REACTS if rank else 0)
        print(f'\n{name}: {error}', file=sys.stderr, flush=True)
        leave(1 if isinstance(error, RunError) else 2)
    except KeyboardInterrupt:
        stop()
    except Exception as error:
        if is_interrupted(error):
            stop()
        time.sleep(LAUNCHER_REACTS if rank or lost_another_process(error) else 0)
        what = (f'another process has ended or does not answer ({error})'
                if lost_another_process(error) else
                f'{describe(error)} {keep_traceback()}')
        print(f'\n{name}: {what}', file=sys.stderr, flush=True)
        leave(1)


def tolerate_other_encodings() -> None:
    """Print what the terminal's encoding lacks as ``?``, and say what else fails without UTF-8."""
    for stream in sys.stdout, sys.stderr:
        if codec(getattr(stream, 'encoding', None)) != 'utf-8' and hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='replace')
    found = codec(sys.getfilesystemencoding())
    if found != 'utf-8':
        print(f'warning: by its locale, this Python takes files and their names for {found}: '
              f'those with other letters cannot be read. Set PYTHONUTF8=1, or LC_ALL=C.UTF-8.',
              file=sys.stderr)


def codec(encoding: Optional[str]) -> str:
    """One name for an encoding that has several; UTF-8 for none, as of text in memory."""
    return codecs.lookup(encoding or 'utf-8').name


def stop() -> None:
    """End after Ctrl-C."""
    if SPOKEN_FOR not in os.environ:
        print(STOPPED, file=sys.stderr)
    sys.exit(130)


@contextlib.contextmanager
def reporting_sigterm() -> Iterator[None]:
    """Say so when SIGTERM ends this process within the block; its status names the signal.

    Of several processes none does: the launcher says it, as a command does for those that it runs.
    Python calls no handler while it waits in a library for the other processes, which may have
    ended already.
    """
    def end(number, frame):
        os.write(2, f'{STOPPED}\n'.encode())
        end_by(number)

    def forget():
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    alone = (os.environ.keys().isdisjoint(('RANK', SPOKEN_FOR))
             and threading.current_thread() is threading.main_thread())
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    os.register_at_fork(after_in_child=forget)  # such as workers that load images
    try:
        yield
    finally:
        forget()


def end_by(number: int) -> None:
    """End this process by a signal, as if nothing had handled it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def is_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C caused an error, as it does where MMEngine formats a config."""
    cause = error.__cause__ or error.__context__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or is_interrupted(cause))


def leave(status: int) -> None:
    """Exit; of several processes at once, without waiting for communication that never comes."""
    if 'RANK' in os.environ:
        os._exit(status)
    sys.exit(status)
