"""Which packages are installed; found out without importing them.

By import names, not by distributions: forks such as onedl-mmdetection go by another name on the
package index and keep the name that is imported. ``tools/setup.sh`` runs this file by itself, so
it imports nothing of the package.
"""

from __future__ import annotations

import importlib.util
import os.path as osp
import re
import sys


def installed_version(module: str) -> str | None:
    """Version of the package that ``import module`` would find, None if there is none.

    Args:
        module: 'mmcv', 'mmdet', 'mmengine', 'torch' or 'numpy', which all keep their version in
            ``version.py``.

    Returns:
        The version; an empty string if the package does not state it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        path = osp.join(folder, 'version.py')
        if osp.isfile(path):
            with open(path, encoding='utf-8') as file:
                found = re.search(r"""^(?:__version__|version) = ['"](.+)['"]""", file.read(),
                                  re.MULTILINE)
            return found[1] if found else ''
    return ''


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.1.0rc1' is (2, 1, 0)."""
    return tuple(map(int, re.findall(r'\d+', re.match(r'[\d.]*', version)[0])))


def mmdet_major() -> int:
    """2 or 3: the installed MMDetection; 2 where there is none.

    What does not fit is for :func:`gkd.environment.check_environment` to say.
    """
    return 3 if numbers(installed_version('mmdet') or '')[:1] == (3,) else 2


if __name__ == '__main__':
    # installed.py MODULE FROM BELOW: is a version from FROM on, but below BELOW, installed?
    module, lowest, too_high = sys.argv[1:]
    found = numbers(installed_version(module) or '')
    sys.exit(not found or not numbers(lowest) <= found < numbers(too_high))
