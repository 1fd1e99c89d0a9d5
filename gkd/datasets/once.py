"""Data sets on disk: complete, or not there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Callable

from gkd.errors import DataError
from gkd.locks import file_lock

STAMP = 'recipe.json'


def build_once(root: str, recipe: dict, build: Callable[[Path], None]) -> Path:
    """Build a data set unless it is there.

    It is built beside its place and renamed, so that an interrupted build leaves nothing behind.
    A data set of another recipe is replaced once the new one is complete. Of several processes one
    builds it; the others wait.

    Args:
        root: Folder of the data set.
        recipe: All that its content depends on, for JSON; ``data_set`` is its name.
        build: Writes the files into the empty folder that it is given.

    Returns:
        The folder of the data set.

    Raises:
        DataError: ``root`` holds something else.
    """
    root = Path(root)
    if _is_there(root, recipe):
        return root
    with file_lock(str(root.with_name(f'.{root.name}.lock'))):
        if not _is_there(root, recipe):
            _build(root, recipe, build)
    return root


def _is_there(root, recipe):
    """Whether a folder holds the data set; DataError if it holds something else."""
    if not root.exists() or not any(root.iterdir()):
        return False
    made_with = _read_stamp(root)
    if made_with.get('data_set') != recipe['data_set']:
        raise DataError(
            f'{root} is neither empty nor a {recipe["data_set"]} data set made by gkd. Move it '
            f'away, or name another folder.')
    return made_with == json.loads(json.dumps(recipe))


def _build(root, recipe, build):
    """Build the data set beside its place, and move it there."""
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        folder.mkdir()
        build(folder)
        (folder / STAMP).write_text(json.dumps(recipe))
        if root.exists():
            os.replace(root, Path(temporary) / 'former')  # which goes with it
        os.replace(folder, root)


def _read_stamp(root):
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}
