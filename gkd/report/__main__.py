"""``python -m gkd.report`` runs the command ``tools/report.py`` or ``tools/mmdet3/report.py``."""

import os.path as osp
import runpy

from gkd.checkpoints import REPOSITORY
from gkd.installed import mmdet_major

if __name__ == '__main__':
    folder = 'mmdet3' if mmdet_major() == 3 else ''
    runpy.run_path(osp.join(REPOSITORY, 'tools', folder, 'report.py'), run_name='__main__')
