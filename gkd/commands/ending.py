"""How a command ends: errors are messages, and the exit status tells their kind."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
from typing import Callable

import torch.distributed as dist

from gkd.commands.explain import describe, lost_another_process
from gkd.errors import GKDError
from gkd.files import naming_storage
from gkd.progress import silence

# Seconds in which the launcher ends the other processes after the first one has failed.
LAUNCHER_REACTS = 5


def run(main: Callable[[], None]) -> None:
    """Run a tool; an error that the user can correct is one message and exit status 2.

    An unforeseen error is one message, too, with exit status 1; a file keeps its traceback.

    If there are several processes, only the first one prints. It also reports the errors that all
    of them meet: the others wait before they report theirs, and meanwhile the launcher ends them.

    Args:
        main: The tool.
    """
    rank = int(os.environ.get('RANK', 0))
    name = f'error in process {rank}' if rank else 'error'
    try:
        with silence() if rank else contextlib.nullcontext(), naming_storage():
            main()
        if dist.is_initialized():
            dist.destroy_process_group()
    except GKDError as error:
        time.sleep(LAUNCHER_REACTS if rank else 0)
        print(f'\n{name}: {error}', file=sys.stderr, flush=True)
        leave(2)
    except KeyboardInterrupt:
        stop()
    except Exception as error:
        if is_interrupted(error):
            stop()
        time.sleep(LAUNCHER_REACTS if rank or lost_another_process(error) else 0)
        what = (f'another process has ended or does not answer ({error})'
                if lost_another_process(error) else
                f'{describe(error)} The whole traceback is in {keep_traceback()}')
        print(f'\n{name}: {what}', file=sys.stderr, flush=True)
        leave(1)


def stop() -> None:
    """End after Ctrl-C."""
    print('\nstopped; the same command goes on from the last checkpoint, if there is one.',
          file=sys.stderr)
    sys.exit(130)


def is_interrupted(error: BaseException) -> bool:
    """Whether an error only tells that Ctrl-C was met, as where MMEngine formats a config."""
    cause = error.__cause__ or error.__context__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or is_interrupted(cause))


def keep_traceback() -> str:
    """Write the traceback of the exception that is being handled to a file; returns its path."""
    with tempfile.NamedTemporaryFile('w', prefix='gkd_', suffix='.log', delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


def leave(status: int) -> None:
    """Exit; of several processes at once, without waiting for communication that never comes."""
    if 'RANK' in os.environ:
        os._exit(status)
    sys.exit(status)
