"""Doctests run under MMDetection 2, but for those of the modules that only 3 can import."""

from fnmatch import fnmatch
from pathlib import Path

from gkd.installed import mmdet_major

OF_MMDET3 = ['gkd/compat/coco_metric.py', 'gkd/compat/engine.py', 'gkd/engine/*',
             'gkd/frameworks/mmdet3.py', 'gkd/comparison/mmdet3.py', 'gkd/looking/mmdet3.py',
             'gkd/planning/mmdet3.py', 'gkd/recipes/mmdet3.py']
HERE = Path(__file__).parent
OTHERS = [name for name in (path.relative_to(HERE).as_posix() for path in HERE.glob('gkd/**/*.py'))
          if not any(fnmatch(name, pattern) for pattern in OF_MMDET3)]
collect_ignore_glob = {2: OF_MMDET3, 3: OTHERS}[mmdet_major()]
