"""Data sets that are made where a config asks for them."""

from __future__ import annotations

from functools import partial

from .character_scenes import prepare_character_scenes
from .digit_scenes import prepare_digit_scenes
from .tree_crowns import STRIPS, prepare_tree_crowns, strip_folder

EMBEDDED = {'data/digit_scenes/': prepare_digit_scenes,
            'data/character_scenes/': prepare_character_scenes,
            **{strip_folder(strip): partial(prepare_tree_crowns, strip_folder(strip)[:-1], ends)
               for strip, ends in STRIPS.items()}}


def prepare_embedded(ann_file: str) -> None:
    """Make the embedded data set that an annotation file belongs to, if it belongs to one.

    Args:
        ann_file: Path as a config gives it, relative to the working directory.

    Raises:
        DataError: The data set cannot be made.
    """
    for folder, prepare in EMBEDDED.items():
        if ann_file.startswith(folder):
            prepare()
