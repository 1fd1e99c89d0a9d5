"""Check that the packages that this package extends are installed, in versions that fit."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import metadata
from typing import Callable, NoReturn

from gkd.errors import EnvironmentMismatchError
from gkd.installed import installed_version, numbers

# pip cannot install mmcv 1.x as an ordinary requirement: its setup script imports pkg_resources,
# which an isolated build of today lacks, and without the variable it compiles its operators and
# calls itself mmcv-full.
_MMCV_1 = ("pip install 'setuptools>=70.1,<81' && "
           'MMCV_WITH_OPS=0 pip install --no-build-isolation mmcv==1.7.2')
# What goes with each MMDetection: package, versions from and below, how to install it.
_NEEDS = {
    2: (('mmcv', '1', '2', _MMCV_1),
        ('mmdet', '2', '3', 'pip install mmdet==2.28.2')),
    3: (('mmengine', '0.7.1', '1', 'pip install mmengine==0.10.7'),
        ('mmcv', '2', '2.3', 'pip install mmcv-lite==2.1.0'),
        ('mmdet', '3', '4', 'pip install mmdet==3.3.0')),
}
_DISTRIBUTIONS = {
    'mmcv': ('mmcv', 'mmcv-full', 'mmcv-lite', 'onedl-mmcv'),
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
# They exclude each other; from 4.12 on they ask for numpy 2.
_OPENCV = ('opencv-python-headless', 'opencv-python', 'opencv-contrib-python',
           'opencv-contrib-python-headless')
_SET_UP = ('In a clone of the repository, `bash tools/setup.sh{option}` does it all, and keeps a '
           'torch >= 2.1 that is already there.')


def check_environment() -> None:
    """Check that MMDetection 2.x or 3.x is installed, with the packages that go with it.

    Raises:
        EnvironmentMismatchError: One is missing, or does not go with the installed MMDetection,
            or numpy not with torch; the message names all that is installed, and what to do.
    """
    versions = {name: installed_version(name) for name in _DISTRIBUTIONS}
    generation = _generation(versions)
    needs = _NEEDS[generation]
    # mmcv 1.x asks for OpenCV unless it was built where one was installed; pip keeps such a build.
    opencv = importlib.util.find_spec('cv2') is not None
    set_up = _SET_UP.format(option=' --mmdet 3' if generation == 3 else '')
    if all(_fits(versions[name], *bounds) for name, *bounds, _ in needs) and opencv:
        _check_numpy(set_up)
        return

    wrong = [name for name, *bounds, _ in needs
             if versions[name] is not None and not _fits(versions[name], *bounds)]
    missing = [(name, install) for name, *_, install in needs if versions[name] is None]
    if not opencv:
        missing.append(('cv2', 'pip install opencv-python-headless'))
    if not wrong and not (generation == 3 and len(missing) > 1):
        name, install = missing[0]
        raise EnvironmentMismatchError(
            f'{name} is not installed. The shortest way:\n    {install}\n{set_up}')
    commands = [f'pip uninstall -y {" ".join(_distributions(name))}' for name in wrong
                if _distributions(name)]
    commands += [install for name, *_, install in needs if name in wrong]
    commands += [install for _, install in missing]
    wanted = ', '.join(f'{name} {low} or later, below {high}' for name, low, high, _ in needs)
    raise EnvironmentMismatchError(
        f'What is installed does not go together: {_describe(versions)}. MMDetection {generation} '
        f'needs {wanted}. The shortest way:\n    ' + '\n    '.join(commands)
        + f'\n{set_up} The other MMDetection: --mmdet {5 - generation}.')


def _check_numpy(set_up: str) -> None:
    """For torch before 2.3, which is built against numpy 1 and reads no array of numpy 2."""
    torch, numpy = (installed_version(name) or '' for name in ('torch', 'numpy'))
    if numbers(torch) >= (2, 3) or numbers(numpy) < (2,):
        return
    opencv = next(filter(_is_distribution, _OPENCV), _OPENCV[0])
    raise EnvironmentMismatchError(
        f'What is installed does not go together: torch {torch}, numpy {numpy}. torch before 2.3 '
        f"needs numpy below 2. The shortest way:\n    pip install 'numpy<2' '{opencv}<4.12'\n"
        f'{set_up}')


def is_there() -> bool:
    """Whether there is an MMDetection to be a plugin of, whatever its version."""
    return installed_version('mmdet') is not None


def needing_mmdetection(names: Sequence[str]) -> Callable[[str], NoReturn]:
    """``__getattr__`` of a package whose parts were not imported, as MMDetection is not there.

    Args:
        names: The parts; to ask for one says what to install.
    """
    def explain(name: str) -> NoReturn:
        if name in names:
            check_environment()
        raise AttributeError(name)

    return explain


def _generation(versions: dict) -> int:
    """Which MMDetection is meant: the installed one, or the one that the installed mmcv is for."""
    if versions['mmdet'] is not None:
        return 3 if numbers(versions['mmdet'])[:1] >= (3,) else 2
    return 3 if numbers(versions['mmcv'] or '')[:1] >= (2,) else 2


def _fits(version: str | None, lowest: str, too_high: str) -> bool:
    if version is None:
        return False
    # A bare folder on the path may not tell its version: let it speak for itself.
    return not numbers(version) or numbers(lowest) <= numbers(version) < numbers(too_high)


def _distributions(module: str) -> list[str]:
    """The names by which pip knows an installed package."""
    return [name for name in _DISTRIBUTIONS[module] if _is_distribution(name)]


def _is_distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _describe(versions: dict) -> str:
    """What is installed: 'mmcv 1.7.2 (mmcv-full), no mmengine, mmdet 3.3.0'."""
    described = []
    for name, version in versions.items():
        if version is None:
            described.append(f'no {name}')
            continue
        others = [other for other in _distributions(name) if other != name]
        described.append(f'{name} {version}' + (f' ({", ".join(others)})' if others else ''))
    return ', '.join(described)
