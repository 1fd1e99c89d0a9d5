"""Leave nothing behind of a run of MMEngine that is refused before it has started."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence

from gkd.files import remove_empty


def remove_traces(runner, folders: Sequence[str]) -> None:
    """Remove the log folder of a run, and the folders that were made for it, if they are empty.

    Args:
        runner: MMEngine's runner, or what there is of one that could not be made.
        folders: Those that were not there before, the innermost first.
    """
    made = vars(runner)
    if 'visualizer' in made:
        made['visualizer'].close()
    for handler in [*made['logger'].handlers] if 'logger' in made else ():
        if isinstance(handler, logging.FileHandler):
            made['logger'].removeHandler(handler)
            handler.close()
    if '_log_dir' in made:
        shutil.rmtree(made['_log_dir'], ignore_errors=True)
    remove_empty(folders)
