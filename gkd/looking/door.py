"""What a config describes, by the MMDetection that is installed."""

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from gkd.looking.mmdet2 import *  # noqa: F403
else:
    from gkd.looking.mmdet3 import *  # noqa: F403
