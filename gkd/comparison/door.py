"""Stages of a comparison, by the MMDetection that is installed."""

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from gkd.comparison.mmdet2 import *  # noqa: F403
else:
    from gkd.comparison.mmdet3 import *  # noqa: F403
