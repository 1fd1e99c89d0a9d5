"""The errors a user can cause. Command-line tools print them without a traceback."""

from __future__ import annotations

import os
import os.path as osp
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import TracebackType


class GKDError(Exception):
    """Base class: the message says what is wrong, where, and what to do."""

    def __init__(self, message: str = ''):
        if message.startswith('Caught '):  # in a process that loads images: with its traceback
            kind = type(self)
            message = message.rpartition(f'{kind.__module__}.{kind.__qualname__}: ')[2].strip()
        super().__init__(message)


class ConfigError(GKDError):
    """A config names something that does not exist or does not fit together."""


class PairError(ConfigError):
    """A kind of knowledge cannot serve this teacher and student; its settings are right."""


class CheckpointError(GKDError):
    """A checkpoint cannot be read, or does not fit the model that it is loaded into."""


class DataError(GKDError):
    """Annotations or images are missing, broken, or do not fit the config."""


class EnvironmentMismatchError(GKDError):
    """An installed package is missing, or does not work with another one."""


class StorageError(GKDError):
    """A file cannot be written: no space, no permission."""


class NumericalError(GKDError):
    """A loss or a weight is not finite any more."""


class RunError(GKDError):
    """Something failed in a run that no check had foreseen: a setting, the data, or a defect."""


@contextmanager
def naming(key: str, *others: type[Exception]) -> Iterator[None]:
    """Turn what MMDetection raises for a wrong setting into a ConfigError that names the key.

    Args:
        key: The key, or what failed.
        others: Further types of exceptions that mean a wrong setting here.
    """
    try:
        yield
    except GKDError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError,
            FileNotFoundError, NotImplementedError, *others) as error:
        raise ConfigError(f'{key}: {type(error).__name__}: {error}') from error


def own_place(error: BaseException) -> str:
    """The last line of a file of the user's own on an error's way, as ``FILE:LINE, FUNCTION``.

    Empty if there is none: files of Python, of installed packages and of this one do not count,
    nor does the command, where each way begins.
    """
    others = (osp.dirname(osp.abspath(__file__)), sysconfig.get_path('stdlib'), '<',
              osp.abspath(sys.argv[0]))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = {'site-packages', 'dist-packages'} & {*frame.filename.split(os.sep)}
        if not installed and not frame.filename.startswith(others):
            return f'{frame.filename}:{frame.lineno}, {frame.name}'
    return ''


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for the end of a message; empty if no name is near.

    Example:
        >>> did_you_mean('fdg', ['gkd', 'fgd', 'RKD']), did_you_mean('rkd', ['gkd', 'RKD'])
        (' Did you mean fgd?', ' Did you mean RKD, gkd?')
        >>> did_you_mean('nothing', ['gkd'])
        ''
    """
    by_letters = {each.lower(): each for each in known}
    near = [by_letters[each] for each in get_close_matches(name.lower(), by_letters)]
    return f' Did you mean {", ".join(near)}?' if near else ''


def shorten(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    listed = ', '.join(map(str, names[:most]))
    return listed if len(names) <= most else f'{listed} and {len(names) - most} more'


def show_without_traceback() -> None:
    """Let scripts that know nothing of these errors end with the message alone, too.

    Such are MMDetection's own tools, and any command where packages do not go together.
    """
    show = sys.excepthook

    def show_message(kind: type, error: BaseException, trace: TracebackType) -> None:
        if isinstance(error, GKDError):
            print(f'\nerror: {error}', file=sys.stderr)
        else:
            show(kind, error, trace)

    sys.excepthook = show_message


def require_count(value: int, key: str, least: int = 1) -> None:
    """Raise ConfigError unless a setting is a whole number from ``least`` on.

    Example:
        >>> require_count(1e3, 'RKD.max_instances', least=2)
        Traceback (most recent call last):
        gkd.errors.ConfigError: RKD.max_instances = 1000.0: must be a whole number from 2 on.
    """
    if type(value) is not int or value < least:
        raise ConfigError(f'{key} = {value!r}: must be a whole number from {least} on.')
