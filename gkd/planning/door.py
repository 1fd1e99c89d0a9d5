"""What a config says of a training, by the MMDetection that is installed."""

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from gkd.planning.mmdet2 import *  # noqa: F403
else:
    from gkd.planning.mmdet3 import *  # noqa: F403
