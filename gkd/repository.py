"""Where configs and commands lie: in the clone, or inside of the installed package."""

from __future__ import annotations

import os.path as osp
import shlex

PACKAGE = osp.dirname(osp.abspath(__file__))
# Installed, the package has the repository's configs and tools inside.
INSTALLED = osp.join(PACKAGE, '.mim')
REPOSITORY = INSTALLED if osp.isdir(INSTALLED) else osp.dirname(PACKAGE)
# What is downloaded and trained goes into the clone; installed, into the current folder.
WORKPLACE = '' if REPOSITORY == INSTALLED else REPOSITORY


def tool(name: str) -> str:
    """Path of a command-line tool, for commands in messages that can be copied into a shell."""
    path = osp.join(REPOSITORY, 'tools', name)
    return osp.join('tools', name) if osp.realpath(path) == osp.realpath(
        osp.join('tools', name)) else shlex.quote(path)
