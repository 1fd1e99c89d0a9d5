"""The errors a user can cause. Command-line tools print them without a traceback."""

from __future__ import annotations

import inspect
import os
import os.path as osp
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import TracebackType
from typing import Optional


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
        raise ConfigError(f'{key}: {why_not_built(error)}') from error


def why_not_built(error: Exception, kind: Optional[type] = None) -> str:
    """What to say of an error of building a class: that a setting is unknown, or its own words.

    Args:
        error: The error.
        kind: The class; by default that which a registry of mmcv or MMEngine was building.

    Example:
        >>> why_not_built(TypeError("f() got an unexpected keyword argument 'mesage'"), GKDError)
        "GKDError has no setting 'mesage' (did you mean message?); it takes message"
        >>> why_not_built(TypeError("f() got an unexpected keyword argument 'colour'"), GKDError)
        "GKDError has no setting 'colour'; it takes message"
        >>> why_not_built(ValueError('no'))
        'ValueError: no'
    """
    plain = f'{type(error).__name__}: {error}'
    unknown, kind = unknown_setting(error), kind or class_being_built(error)
    if unknown is None or kind is None:
        return plain
    known = settings_of(kind)
    if unknown in known:  # the class itself passes it on to what does not take it
        return plain
    meant = get_close_matches(unknown, known)
    return (f'{kind.__name__} has no setting {unknown!r}'
            + (f' (did you mean {", ".join(meant)}?)' if meant else '')
            + (f'; it takes {", ".join(known)}' if known else ''))


def settings_of(kind: type) -> list[str]:
    """What the constructor of a class takes by name, with what its base classes take for it.

    Example:
        >>> class Circle:
        ...     def __init__(self, radius, colour=None): ...
        >>> class Disc(Circle):
        ...     def __init__(self, filled, **settings): ...
        >>> settings_of(Disc)
        ['filled', 'radius', 'colour']
    """
    known = {}
    for base in kind.__mro__:
        if not inspect.isfunction(vars(base).get('__init__')):
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()
        known.update((each.name, None) for each in parameters
                     if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return [*known]


def unknown_setting(error: Exception) -> Optional[str]:
    """The setting that a class does not take, by the error of building it; None for other errors.

    Example:
        >>> try:
        ...     dict.fromkeys(iterabel=())
        ... except TypeError as error:
        ...     print(unknown_setting(error))
        None
        >>> unknown_setting(TypeError("A.__init__() got an unexpected keyword argument 'times'"))
        'times'
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return found and found[1]


def class_being_built(error: Exception) -> Optional[type]:
    """The class whose constructor raised an error while mmcv's or MMEngine's registry built it.

    None if the registry built no class, or if what the constructor calls raised the error.
    """
    while isinstance(error.__context__, type(error)):  # the registry raises it anew
        error = error.__context__
    places = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    kind = next((place['obj_cls'] for place in reversed(places) if 'obj_cls' in place), None)
    if not isinstance(kind, type):
        return None
    # A call with an argument that nobody takes fails where it stands.
    by_registry = 'obj_cls' in places[-1]
    return kind if by_registry or isinstance(places[-1].get('self'), kind) else None


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
