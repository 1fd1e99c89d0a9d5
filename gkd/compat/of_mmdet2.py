"""Imported by what runs under MMDetection 2 alone: says so where another one is installed."""

from gkd.errors import EnvironmentMismatchError
from gkd.installed import installed_version, mmdet_major

if mmdet_major() != 2:
    raise EnvironmentMismatchError(
        f'this part of the package is for MMDetection 2, and {installed_version("mmdet")} is '
        f'installed. With MMDetection 3, train, test and compare by tools/train.sh, '
        f'tools/test.sh and tools/compare.sh, and report by `python -m gkd.report`; or install '
        f'the other one: bash tools/setup.sh --mmdet 2.')
