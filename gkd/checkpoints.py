"""Get and verify published checkpoints, and explain how to get those that are missing."""

from __future__ import annotations

import hashlib
import os
import os.path as osp
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Optional

from gkd.errors import CheckpointError
from gkd.progress import progress
from gkd.repository import REPOSITORY, WORKPLACE, tool
from gkd.zoo import PublishedCheckpoint, find

FOLDER = osp.join(WORKPLACE, 'checkpoints')
BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without a byte


def check_file(path: str) -> None:
    """Check that a file with the name of a published checkpoint is that checkpoint.

    Files of other names are the user's own and are not looked at.

    Raises:
        CheckpointError: The content does not have the SHA-256 of the name.
    """
    checkpoint = find(osp.basename(path))
    if checkpoint is not None and not matches(path, checkpoint):
        raise CheckpointError(
            f'{path} ({osp.getsize(path):,} bytes) is not the published file of this name: its '
            f'SHA-256 does not begin with {checkpoint.sha256}. It is damaged or was cut short. '
            f'Delete it and get it again: {get_command(checkpoint.name)}')


def how_to_get(path: str) -> str:
    """What to do about a checkpoint that is missing, for messages.

    Args:
        path: The missing file, as a config names it.
    """
    checkpoint = find(osp.basename(path))
    if '://' in path:
        name = osp.basename(path)
        return (f'It must be a file: {get_command(name) if checkpoint else "download it"}, and '
                f'write checkpoints/{name} instead.')
    if checkpoint is not None:
        return (f'Get it with\n'
                f'  {get_command(checkpoint.name)}\n'
                f'or fetch {checkpoint.url} and save it as {path}.')
    folder, name = osp.split(osp.normpath(path))
    recipe = find_recipe(osp.basename(folder)) if name == 'latest.pth' else None
    if recipe is not None:
        return f'No one has published it; train it first:\n  bash {tool("train.sh")} {recipe} 8'
    return 'Put the trained weights there, or change the key to where they are.'


def find_recipe(name: str) -> Optional[str]:
    """Path of the config file of this name under ``configs/``; None if there is none."""
    configs = osp.join(REPOSITORY, 'configs')
    for folder, _, files in sorted(os.walk(configs)):
        if f'{name}.py' in files:
            return osp.relpath(osp.join(folder, f'{name}.py'), REPOSITORY)
    return None


def get_command(name: str) -> str:
    """The command that downloads a checkpoint."""
    return f'python {tool("checkpoints.py")} get {name}'


def download(checkpoint: PublishedCheckpoint, folder: str = FOLDER) -> str:
    """Download a checkpoint; continue where an earlier attempt ended.

    The file grows under another name and gets its own once its hash is right.

    Args:
        checkpoint: What to get.
        folder: Where to put it.

    Returns:
        Path of the file. One that is there already and right is kept.

    Raises:
        CheckpointError: There is no connection, it broke off, or the file is not the published
            one.
    """
    path = osp.join(folder, checkpoint.name)
    if osp.isfile(path):
        if matches(path, checkpoint):
            return path
        raise CheckpointError(f'{path} is there, but is not the published file (its SHA-256 does '
                              f'not begin with {checkpoint.sha256}). Delete it, or move it away.')
    os.makedirs(folder, exist_ok=True)
    part = f'{path}.part'
    try:
        fetch(checkpoint.url, part, checkpoint.name)
    except (OSError, HTTPException) as error:  # URLError, timeouts and resets are OSErrors
        raise CheckpointError(
            f'cannot download {checkpoint.url} ({reason_of(error)}).\n'
            f'The same command continues where it ended. Without a network, fetch the file on '
            f'another machine and save it as\n  {path}\n'
            f'then: python {tool("checkpoints.py")} verify {checkpoint.name}') from error
    if not matches(part, checkpoint):
        digest = sha256_of(part)
        os.remove(part)
        raise CheckpointError(
            f'{checkpoint.url} sent another file than the published one: its SHA-256 is {digest}, '
            f'expected {checkpoint.sha256}.... It was deleted; try again, or get it elsewhere.')
    os.replace(part, path)
    return path


def fetch(url: str, part: str, name: str) -> None:
    """Append what is missing of a file.

    Args:
        url: Where it is.
        part: The part of it that is here, or a file to be made.
        name: What to call it in the progress bar.

    Raises:
        OSError: The connection failed or ended early.
    """
    start = osp.getsize(part) if osp.isfile(part) else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send; the hash will show
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            start = 0
        length = response.headers.get('Content-Length')
        total = start + int(length) if length else None
        with open(part, 'ab' if start else 'wb') as file, \
                progress(None, name, total, 'B', initial=start, unit_scale=True,
                         unit_divisor=1024) as bar:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
            if total is not None and file.tell() < total:
                raise ConnectionError(f'it ended after {file.tell():,} of {total:,} bytes')


def reason_of(error: Exception) -> str:
    """Why a download failed, in words."""
    if isinstance(error, urllib.error.HTTPError):
        return f'the server answers {error.code} {error.reason}'
    return str(getattr(error, 'reason', error)) or type(error).__name__


def matches(path: str, checkpoint: PublishedCheckpoint) -> bool:
    """Whether a file is the published one."""
    return sha256_of(path).startswith(checkpoint.sha256)


def sha256_of(path: str) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
