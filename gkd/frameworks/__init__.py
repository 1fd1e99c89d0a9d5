"""The interface to MMDetection: all that the method takes from mmcv, mmdet and mmengine.

The installed MMDetection decides which of the two files is used; both define the same names.
"""

from gkd.environment import check_environment
from gkd.installed import mmdet_major

check_environment()

if mmdet_major() == 2:
    from gkd.frameworks.mmdet2 import *  # noqa: F403
else:
    from gkd.frameworks.mmdet3 import *  # noqa: F403
