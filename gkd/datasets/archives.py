"""Unpacking archives, again and again until all is there."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

from gkd.errors import DataError
from gkd.progress import progress


def unpack(archive: str, folder: str) -> int:
    """Unpack the files of a zip or tar archive that are not there yet, or not whole.

    Files are known by their size, so that an interrupted run continues where it stopped.

    Args:
        archive: The archive.
        folder: Where to.

    Returns:
        Number of files unpacked.

    Raises:
        DataError: The archive is broken, or would write outside of ``folder``.
    """
    count = 0
    try:
        with _opened(archive) as (members, read):
            for name, size, member in progress(members, f'unpacking {Path(archive).name}',
                                               unit='file'):
                target = Path(folder, name)
                if Path(folder).resolve() not in target.resolve().parents:
                    raise DataError(f'{archive} holds {name}, which lies outside of {folder}.')
                if target.is_file() and target.stat().st_size == size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with read(member) as source, open(target, 'wb') as file:
                    shutil.copyfileobj(source, file)
                count += 1
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f'cannot unpack {archive}: {error}. Download it again if it is not '
                        f'whole.') from error
    return count


@contextmanager
def _opened(archive):
    """Name, size and entry of all files, and how to read an entry."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield [(entry.filename, entry.file_size, entry) for entry in file.infolist()
                   if not entry.is_dir()], file.open
    else:
        with tarfile.open(archive) as file:
            yield [(entry.name, entry.size, entry) for entry in file if entry.isfile()], \
                file.extractfile
