"""Imported by what runs under MMDetection 2 alone: says so where another one is installed."""

from gkd.errors import EnvironmentMismatchError
from gkd.installed import installed_version, mmdet_major

if mmdet_major() != 2:
    raise EnvironmentMismatchError(
        f'this part of the package is for MMDetection 2, and {installed_version("mmdet")} is '
        f'installed. With MMDetection 3, train, test, distil a pair, compare methods, look at '
        f'prototypes and robust weights, study noise, export and report by tools/train.sh, '
        f'tools/test.sh, tools/distill.sh, tools/compare.sh, tools/gallery.py, '
        f'tools/draw_trust.py, tools/noise_study.py, tools/export_student.py and '
        f'`python -m gkd.report`; for all else: '
        f'bash tools/setup.sh --mmdet 2.')
