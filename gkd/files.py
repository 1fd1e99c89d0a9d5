"""Files that appear whole or not at all, and say so when they are damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import os.path as osp
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Union

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gkd.errors import CheckpointError, StorageError

CHECKSUM = 'sha256'
# Errors of an operating system that only writing can cause.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def naming_storage() -> Iterator[None]:
    """Turn an OSError that says that a disk is full or not writable into a StorageError.

    For files that other code writes: logs, results, temporary files.

    Raises:
        StorageError: The block raised such an OSError; any other stays as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in UNWRITABLE:
            # When an open file is written to, the system does not name it.
            place = error.filename or f'a file, in the work dir or in {tempfile.gettempdir()},'
            raise unwritable(place, error) from error
        if isinstance(error, PermissionError):
            raise StorageError(f'{error.filename or "a file"}: {error.strerror or error}. Name '
                               f'another place, or change its permissions.') from error
        raise


def unwritable(path: Union[str, os.PathLike], error: OSError) -> StorageError:
    """The error of a file or a folder that cannot be written."""
    return StorageError(f'{path} cannot be written: {error.strerror or error}. Make room or name '
                        f'another folder, then run the same command again.')


def make_folder(path: str) -> None:
    """Make a folder to write into, unless it is there.

    Raises:
        StorageError: It cannot be made or written into, or not every library can write there.
    """
    try:
        path.encode('utf-8')
    except UnicodeEncodeError:  # safetensors takes no other names, and configs hold none
        raise StorageError(f'{ascii(path)}: its name is no text in UTF-8. Name another folder.'
                           ) from None
    try:
        os.makedirs(path, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(path: str) -> None:
    """Raise StorageError for a file that could not be written after hours of work.

    Nothing is made: its folder may be missing, and is then made with it.
    """
    if osp.isdir(path):
        raise StorageError(f'{path} is a folder; name a file to write.')
    folder = osp.dirname(osp.abspath(path))
    absent = absent_folders(folder)
    there = osp.dirname(absent[-1]) if absent else folder
    if not osp.isdir(there):
        raise unwritable(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(there, os.W_OK):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


@contextmanager
def made_folder(path: str) -> Iterator[None]:
    """Make a folder to write into; if the block fails, remove what was made and is empty.

    Raises:
        StorageError: It cannot be made or written into.
    """
    absent = absent_folders(path)
    try:
        make_folder(path)
        yield
    except BaseException:
        remove_empty(absent)
        raise


def absent_folders(path: str) -> list[str]:
    """The folders of a path that are not there yet, the innermost first.

    Example:
        >>> absent_folders('/no/such'), absent_folders('/')
        (['/no/such', '/no'], [])
    """
    path = osp.abspath(path)
    return [] if osp.exists(path) else [path, *absent_folders(osp.dirname(path))]


def remove_empty(folders: Sequence[str]) -> None:
    """Remove folders, the innermost first, as long as they are empty."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


@contextmanager
def written_whole(path: Union[str, os.PathLike]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name once it is complete and on the disk.

    Until then it lies beside its place under a hidden name. A reader never meets half a file, and
    an older file stays as it is if writing fails or is interrupted.

    Args:
        path: The file to write; missing folders are made.

    Yields:
        The open file, for bytes.

    Raises:
        StorageError: The disk is full, or the place cannot be written to.
    """
    path = Path(path)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise unwritable(path, error) from error
    except RuntimeError as error:  # torch.save puts one of its own in the place of what failed
        if isinstance(error.__context__, OSError):
            raise unwritable(path, error.__context__) from error
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink()


def remove_unfinished(folder: Union[str, os.PathLike]) -> None:
    """Remove what :func:`written_whole` left in a folder when its process was killed."""
    for unfinished in Path(folder).glob('.*.tmp'):
        if unfinished.name.split('.')[-2].isdigit():
            unfinished.unlink(missing_ok=True)


def save_tensors(path: Union[str, os.PathLike], tensors: Mapping[str, Tensor],
                 metadata: Mapping[str, str]) -> None:
    """Write tensors and strings to a safetensors file with a checksum.

    Args:
        path: The file to write, whole or not at all.
        tensors: Tensors by name, on the CPU, contiguous, none sharing memory.
        metadata: Strings kept with them; ``sha256`` is the checksum's.

    Raises:
        StorageError: The file cannot be written.
    """
    with written_whole(path) as file:
        file.write(save(dict(tensors), {**metadata, CHECKSUM: checksum(tensors, metadata)}))


def load_tensors(path: Union[str, os.PathLike],
                 advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that :func:`save_tensors` wrote, to the CPU. Runs no code from the file.

    A safetensors file without a checksum is read as it is.

    Args:
        path: The file.
        advice: What to do if it cannot be read, for the message.

    Returns:
        Tensors by name, and the metadata with the checksum as ``sha256``.

    Raises:
        CheckpointError: The file is missing, cut short, or not what was written.
    """
    tensors, metadata = map_tensors(path, advice)
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise CheckpointError(f'{path} is damaged: its content does not match its checksum. '
                              f'{advice}')
    return tensors, metadata


def map_tensors(path: Union[str, os.PathLike],
                advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a file that :func:`save_tensors` wrote: what is looked at is read from it then.

    The checksum is not compared. Processes that map the same file share the memory.

    Args:
        path: The file.
        advice: What to do if it cannot be read, for the message.

    Returns:
        Tensors by name, which must not be written to, and the metadata.

    Raises:
        CheckpointError: The file is missing, cut short, or no safetensors file.
    """
    try:
        with safe_open(os.fspath(path), framework='pt', device='cpu') as file:
            return ({name: file.get_tensor(name) for name in file.keys()},
                    dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path}: cannot be read as a safetensors file ({error}). '
                              f'{advice}') from error


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, and of all other metadata."""
    kept = sorted(item for item in metadata.items() if item[0] != CHECKSUM)
    digest = hashlib.sha256(repr(kept).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_atomically(path: str, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    with written_whole(path) as file:
        file.write(text.encode('utf-8'))
