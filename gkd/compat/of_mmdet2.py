"""Imported by what runs under MMDetection 2 alone: says so where another one is installed."""

from gkd.errors import EnvironmentMismatchError
from gkd.installed import installed_version, mmdet_major

if mmdet_major() != 2:
    raise EnvironmentMismatchError(
        f'this part of the package is for MMDetection 2, and {installed_version("mmdet")} is '
        f'installed. With MMDetection 3, train, test, distil a pair, compare methods, look at '
        f'prototypes and robust weights, export and report by tools/train.sh, tools/test.sh, '
        f'tools/distill.sh, tools/compare.sh, tools/gallery.py, tools/draw_trust.py, '
        f'tools/export_student.py and `python -m gkd.report`; for all else: '
        f'bash tools/setup.sh --mmdet 2.')
