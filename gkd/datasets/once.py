"""Data sets on disk: complete, or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable

from gkd.errors import DataError

STAMP = 'recipe.json'


def build_once(root: str, recipe: dict, build: Callable[[Path], None]) -> Path:
    """Build a data set unless it is there.

    It is built beside its place and renamed, so that an interrupted build leaves nothing behind.
    A data set of another recipe is replaced once the new one is complete.

    Args:
        root: folder of the data set.
        recipe: all that its content depends on, for JSON; ``data_set`` is its name.
        build: writes the files into the empty folder that it is given.

    Returns:
        The folder of the data set.

    Raises:
        DataError: ``root`` holds something else.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        made_with = _read_stamp(root)
        if made_with == json.loads(json.dumps(recipe)):
            return root
        if made_with.get('data_set') != recipe['data_set']:
            raise DataError(
                f'{root} is neither empty nor a {recipe["data_set"]} data set made by gkd. Move '
                f'it away, or name another folder.')
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        folder.mkdir()
        build(folder)
        (folder / STAMP).write_text(json.dumps(recipe))
        if root.exists():
            shutil.rmtree(root)
        os.replace(folder, root)
    return root


def _read_stamp(root):
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}
