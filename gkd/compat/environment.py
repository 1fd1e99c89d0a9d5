"""Are the packages there that this package is a plugin of, and in versions that fit?"""

from __future__ import annotations

import importlib.util
from importlib import metadata

from gkd.errors import EnvironmentMismatchError

_SET_UP = ('In a clone of the repository, `bash tools/setup.sh` does it all, and keeps a torch '
           '>= 2.1 that is already there.')
# pip cannot install mmcv 1.x as an ordinary requirement: its setup script imports pkg_resources,
# which an isolated build of today lacks, and without the variable it compiles its operators and
# calls itself mmcv-full.
_MMCV = ("pip install 'setuptools>=70.1,<81' && "
         'MMCV_WITH_OPS=0 pip install --no-build-isolation mmcv==1.7.2')
_MMDET = 'pip install mmdet==2.28.2'


def check_environment() -> None:
    """Check that mmcv 1.x, OpenCV and mmdet 2.x are installed.

    Raises:
        EnvironmentMismatchError: if one is missing or of another major version.
    """
    _require('mmcv', install=_MMCV)
    _require_major('mmcv', ('mmcv', 'mmcv-full'), major=1, install=_MMCV)
    # mmcv asks for it unless it was built where one was installed; pip keeps what was built.
    _require('cv2', install='pip install opencv-python-headless')
    _require('mmdet', install=_MMDET)
    _require_major('mmdet', ('mmdet',), major=2, install=_MMDET)


def _require(module: str, install: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise EnvironmentMismatchError(
            f'{module} is not installed. The shortest way:\n    {install}\n{_SET_UP}')


def _require_major(module: str, distributions: tuple, major: int, install: str) -> None:
    version = _installed_version(distributions)
    if version is not None and int(version.split('.')[0]) != major:
        raise EnvironmentMismatchError(
            f'{module} {version} is installed; this package is for MMDetection 2.x and needs '
            f'{module} {major}.x. The shortest way:\n    {install}\n{_SET_UP}')


def _installed_version(distributions: tuple) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None  # a bare folder on the path: let it speak for itself
