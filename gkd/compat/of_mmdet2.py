"""Imported by what runs under MMDetection 2 alone: says so where another one is installed."""

from gkd.errors import EnvironmentMismatchError
from gkd.installed import installed_version, mmdet_major

if mmdet_major() != 2:
    raise EnvironmentMismatchError(
        f'this part of the package is for MMDetection 2, and {installed_version("mmdet")} is '
        f'installed. With MMDetection 3, train, test, distil a pair, compare methods, export and '
        f'report by tools/train.sh, tools/test.sh, tools/distill.sh, tools/compare.sh, '
        f'tools/export_student.py and `python -m gkd.report`; for all else: bash tools/setup.sh --mmdet 2.')
