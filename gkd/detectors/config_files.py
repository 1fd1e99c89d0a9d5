"""Find and read config files; what cannot be read is named, with what to do."""

from __future__ import annotations

import functools
import importlib.util
import os.path as osp
import re
import sys
import threading
import traceback
from glob import escape as glob_escape
from glob import glob
from typing import Any, Optional

from gkd.detectors.entries import name_of, nested, place_of
from gkd.errors import ConfigError, own_place
from gkd.frameworks import MMDET_SCOPE, Config, logger, mmdet_configs
from gkd.installed import mmdet_major
from gkd.repository import REPOSITORY

# Held while a config is read: mmcv changes sys.path for it, and Python 3.11 fails at times if two
# threads parse code into a tree.
reading = threading.RLock()
# The last releases that go with mmcv 1.x.
FOR_MMCV_1 = {'mmcls': 'mmcls==0.25.0'}


def read_config(path: str, where: str = '') -> Config:
    """Read a config file.

    Args:
        path: The file. It is Python and is run.
        where: What to begin messages with.

    Raises:
        ConfigError: The file cannot be read, or its ``model`` is not the detector.
    """
    try:
        with reading:
            config = with_found_teacher(with_registered_names(Config.fromfile(path)))
    except Exception as error:
        message = (f'{where}cannot read config {path}: {type(error).__name__}: '
                   f'{failed_import(path, error) or error}{place_of_error(error)}'
                   f'{moved_base(error)}{other_mmdetection(error)}')
        # mmcv deletes the temporary copy of the config while it is open. The frames of this error
        # hold that copy; freeing it would print another error in the terminal.
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            traceback.clear_frames(error.__traceback__)
        finally:
            sys.unraisablehook = hook
        raise ConfigError(message) from error
    if any(name_of(hook.get('type')) == 'RFSearchHook'
           for hook in nested(config.get('custom_hooks') or ())):
        raise ConfigError(
            f'{where}{path} has an RFSearchHook in `custom_hooks`, which gives convolutions other '
            f'dilations after the `model` is built. This is not supported. To take the detector '
            f'without it, as `model` describes it, leave the hook out.')
    return config


def with_found_teacher(config: Config) -> Config:
    """A config in which the config of a teacher of MMDetection's own (LD) is a file that is there.

    MMDetection names it from the folder where its source lies, which need not be the current one.
    """
    model = config.get('model')
    named = model.get('teacher_config') if isinstance(model, dict) else None
    if isinstance(named, str):
        folder, _, rest = named.partition('/')
        own = f'{MMDET_SCOPE}{rest}' if folder == 'configs' else named
        model['teacher_config'] = find_file(named) or find_file(own) or named
    return config


def with_registered_names(config: Config) -> Config:
    """A config, changed so that this package's classes stand there by their registered names.

    A config of MMEngine's new style holds the classes themselves, and what is written of it their
    places, such as ``gkd.distiller.Distiller``.
    """
    if replace_classes(config._cfg_dict) and 'custom_imports' not in config:
        config.custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
    return config


def replace_classes(entry: Any) -> bool:
    """Replace this package's classes in all ``type`` of a config; returns whether there were any.

    Example:
        >>> entry = dict(knowledge=[dict(type='gkd.knowledge.methods.pkd.PKD')])
        >>> replace_classes(entry), entry
        (True, {'knowledge': [{'type': 'PKD'}]})
    """
    if isinstance(entry, dict):
        inside = [replace_classes(value) for value in entry.values()]
        place = place_of(entry.get('type'))
        if place.startswith('gkd.'):
            entry['type'] = name_of(place)
            return True
        return any(inside)
    return isinstance(entry, (list, tuple)) and any([replace_classes(value) for value in entry])


def other_mmdetection(error: Exception) -> str:
    """What to do if only the other MMDetection can read a config.

    mmcv 1.x looks for an MMDetection 3 ``_base_`` as a file. MMEngine takes any config that
    imports a package, and has no ``_base_``, for one in its new style, where imports are replaced.
    """
    if mmdet_major() == 3 and isinstance(error, RuntimeError) and (
            'lazy_import' in str(error) or not str(error)):
        return (' (MMEngine takes a file that imports a package for a config in its new style, '
                'where what is imported cannot be called, and `_base_` is not known. Write '
                '`_base_ = []` above the import. If the config is for MMDetection 2: bash '
                'tools/setup.sh --mmdet 2)')
    if not isinstance(error, FileNotFoundError) or MMDET_SCOPE not in str(error):
        return ''
    return (f' (`_base_` of `{MMDET_SCOPE}...` is for MMDetection 3, and MMDetection 2 is '
            f'installed: bash tools/setup.sh --mmdet 3)')


def failed_import(path: str, error: Exception) -> str:
    """Why a config's ``custom_imports`` cannot be imported, and what to do; '' for other errors.

    mmcv says nothing, MMEngine lists where Python looked.
    """
    cause = first_cause(error)
    if not isinstance(error, ImportError) or cause is error:  # of an import in the file
        return ''
    with reading:
        config = Config.fromfile(path, import_custom_modules=False)
    modules = (config.get('custom_imports') or {}).get('imports') or []
    names = [modules] if isinstance(modules, str) else modules
    packages = dict.fromkeys(name.partition('.')[0] for name in names)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    begins = f'Its `custom_imports` ({", ".join(names)})'
    if missing:
        wanted = [FOR_MMCV_1.get(name, name) for name in missing]
        return (f'{begins} need {", ".join(missing)}, which is not installed: pip install '
                f'{" ".join(wanted)}, or, if it is a module of yours, add its folder to '
                f'PYTHONPATH')
    return f'{begins} fail: {type(cause).__name__}: {cause}' * bool(names)


def first_cause(error: BaseException) -> BaseException:
    """What an error of importing began with: those that mmcv and MMEngine raise name no module."""
    while isinstance(error, ImportError) and error.name is None and error.__context__ is not None:
        error = error.__context__
    return error


def place_of_error(error: Exception) -> str:
    """Where in a config, or in a module that it imports, an error began; empty elsewhere."""
    file, _, line = own_place(first_cause(error)).rpartition(':')
    if osp.isfile(file):
        return f' (in {file}:{line})'
    # mmcv runs a copy that is gone.
    return f' (in line {line.partition(",")[0]} of it, or of a `_base_`)' if file else ''


def moved_base(error: Exception) -> str:
    """What to write in ``_base_`` if a config was not found there because it has moved."""
    named = re.search(r'"(.+)"', str(error)) if isinstance(error, FileNotFoundError) else None
    moved = find_moved(osp.normpath(named[1])) if named else None
    return f'. It has moved: write {moved} in `_base_`.' if moved else ''


def find_file(path: str) -> Optional[str]:
    """Resolve ``mmdet::`` paths and paths relative to the repository; None if nothing is there.

    A config that has moved into a subfolder is read from there (:func:`find_moved`), and the log
    says so.
    """
    if path.startswith(MMDET_SCOPE):
        candidates = [osp.join(mmdet_configs(), path[len(MMDET_SCOPE):])]
    else:
        candidates = [path, osp.join(REPOSITORY, path)]
    found = next((candidate for candidate in candidates if osp.isfile(candidate)), None)
    if found is None:
        found = next(filter(None, map(find_moved, candidates)), None)
        if found is not None:
            log_moved(path, found)
    return found


def find_moved(path: str) -> Optional[str]:
    """Find a config that is not at ``path`` in one of the subfolders of its folder.

    So ``configs/coco/NAME.py`` finds ``configs/coco/gkd/NAME.py``.

    Returns:
        Its path; None if there is none, or if several files have its name.
    """
    folder, name = osp.split(path)
    if not name.endswith('.py'):
        return None
    found = glob(osp.join(glob_escape(folder), '*', glob_escape(name)))
    return found[0] if len(found) == 1 else None


@functools.cache  # configs are read several times; once is enough
def log_moved(path: str, found: str) -> None:
    """Log which file is read instead of the one that was named."""
    logger().warning(f'{path} has moved; reading {found}')
