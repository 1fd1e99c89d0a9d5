"""``python -m gkd.report`` runs the command ``tools/report.py``."""

import os.path as osp
import runpy

from gkd.repository import REPOSITORY

if __name__ == '__main__':
    runpy.run_path(osp.join(REPOSITORY, 'tools', 'report.py'), run_name='__main__')
