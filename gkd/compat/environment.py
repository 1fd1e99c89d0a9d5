"""Are the packages there that this package is a plugin of, and in versions that fit?"""

from __future__ import annotations

import importlib.util
from importlib import metadata

from gkd.errors import EnvironmentMismatchError

_SET_UP = 'Run `bash tools/setup.sh` (it keeps a torch >= 2.1 that is already there).'


def check_environment() -> None:
    """Check that mmcv 1.x and mmdet 2.x are installed.

    Raises:
        EnvironmentMismatchError: if one is missing or of another major version.
    """
    _require('mmcv', ('mmcv', 'mmcv-full'), major=1,
             install='MMCV_WITH_OPS=0 pip install --no-build-isolation mmcv==1.7.2')
    _require('mmdet', ('mmdet',), major=2, install='pip install mmdet==2.28.2')


def _require(module: str, distributions: tuple, major: int, install: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise EnvironmentMismatchError(
            f'{module} is not installed. {_SET_UP} By hand: `{install}`')
    version = _installed_version(distributions)
    if version is not None and int(version.split('.')[0]) != major:
        raise EnvironmentMismatchError(
            f'{module} {version} is installed; this package is for MMDetection 2.x and needs '
            f'{module} {major}.x. {_SET_UP} By hand: `{install}`')


def _installed_version(distributions: tuple) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None  # a bare folder on the path: let it speak for itself
