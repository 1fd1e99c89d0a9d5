"""Turn unforeseen exceptions into messages."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from gkd.commands.machine import advice_on
from gkd.errors import GKDError, RunError, own_place
from gkd.files import naming_storage


@contextmanager
def explaining() -> Iterator[None]:
    """Raise everything that fails inside as an error of this package's own types.

    What MMDetection raises for settings and data that do not fit has many types and forms. The
    message gives the type and the place, and the file that holds the whole traceback.

    Raises:
        StorageError: Something cannot be written.
        RunError: For any other exception that is not a GKDError, except the loss of another
            process.
    """
    try:
        with naming_storage():
            yield
    except GKDError:
        raise
    except Exception as error:
        if lost_another_process(error):
            raise
        raise RunError(f'{describe(error)} {keep_traceback()}') from error


def describe(error: Exception) -> str:
    """What happened and where, in two or three lines.

    Example:
        >>> try:
        ...     {}['gone']
        ... except KeyError as error:
        ...     print(describe(error).splitlines()[0])
        KeyError: 'gone'
    """
    advice = advice_on(error) or ('Check the settings and the data that are used there; if both '
                                  'are right, this is a defect.')
    return (f'{type(error).__name__}: {shown(error)}\n'
            f'It happened in {place_of(error)}. {advice}')


def keep_traceback() -> str:
    """Write the traceback of the exception that is being handled to a file; says to which."""
    try:
        with tempfile.NamedTemporaryFile('w', encoding='utf-8', errors='backslashreplace',
                                         prefix='gkd_', suffix='.log', delete=False) as file:
            traceback.print_exc(file=file)
    except OSError as error:  # the disk may be full
        return f'The traceback could not be kept ({error}).'
    return f'The whole traceback is in {file.name}'


def shown(error: Exception) -> str:
    """The text of an error on one line, without the middle of a long one."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or ['']
    # If a process that loads images has failed, the traceback is part of the text.
    return ' ... '.join(lines if len(lines) < 3 else [lines[0], lines[-1]])[:600]


def place_of(error: Exception) -> str:
    """File, line and function where an error was raised, and the user's own that called it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place, own = f'{last.filename}:{last.lineno}, {last.name}', own_place(error)
    return place if not own or own == place else f'{place}, called from {own}'


def lost_another_process(error: Exception) -> bool:
    """Whether an operation failed because the process at its other end is gone."""
    if not (dist.is_available() and dist.is_initialized() and isinstance(error, RuntimeError)):
        return False
    kind = getattr(dist, 'DistError', dist.DistBackendError)  # torch 2.1 has the latter only
    signs = ('Connection closed by peer', 'Connection reset by peer', 'Timed out waiting')
    return isinstance(error, kind) or any(sign in str(error) for sign in signs)
