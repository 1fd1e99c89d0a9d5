"""The check of a recipe, by the MMDetection that is installed."""

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from gkd.recipes.mmdet2 import *  # noqa: F403
else:
    from gkd.recipes.mmdet3 import *  # noqa: F403
