"""``python -m gkd.prototypes plan CONFIG`` runs ``tools/plan.py --only-prototypes CONFIG``."""

import os.path as osp
import runpy
import sys

from gkd.repository import REPOSITORY

if __name__ == '__main__':
    sys.argv[1:] = ['--only-prototypes', *(word for word in sys.argv[1:] if word != 'plan')]
    runpy.run_path(osp.join(REPOSITORY, 'tools', 'plan.py'), run_name='__main__')
