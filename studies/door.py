"""How detectors of the zoo are trained and tested, by the MMDetection that is installed."""

from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from studies.mmdet2 import *  # noqa: F403
else:
    from studies.mmdet3 import *  # noqa: F403
