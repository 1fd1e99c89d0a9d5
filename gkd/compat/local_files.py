"""How mmcv and MMEngine read checkpoints from the local disk and write files to it."""

from __future__ import annotations

from gkd.compat.checkpoint import MapLocation, load_checkpoint_file
from gkd.files import written_whole


def load_from_local(filename: str, map_location: MapLocation = None) -> dict:
    """Read a checkpoint without executing code in it.

    The loaders of both log the end of the function's name, ``local``.
    """
    return load_checkpoint_file(filename, map_location)


def put(self, obj: bytes, filepath: str) -> None:
    """The method of a storage backend: write a file, whole or not at all."""
    with written_whole(filepath) as file:
        file.write(obj)
