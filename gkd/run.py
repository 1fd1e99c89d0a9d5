"""``python -m gkd.run SCRIPT ...``: import gkd, then run a script.

For scripts that use MMDetection before they read a config with ``custom_imports``, such as the
``tools/test.py`` of MMDetection 3.
"""

import os.path as osp
import runpy
import sys

import gkd  # noqa: F401

if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('usage: python -m gkd.run SCRIPT [ARGUMENTS ...]')
    del sys.argv[0]
    if not osp.isfile(sys.argv[0]):
        sys.exit(f'error: no such script: {sys.argv[0]}')
    sys.path[0] = osp.dirname(osp.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name='__main__')
