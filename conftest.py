"""Doctests run under MMDetection 2, without the modules that only 3 can import."""

from gkd.installed import mmdet_major

collect_ignore_glob = {
    2: ['gkd/compat/coco_metric.py', 'gkd/compat/engine.py', 'gkd/engine/*',
        'gkd/frameworks/mmdet3.py', 'gkd/comparison/mmdet3.py', 'gkd/looking/mmdet3.py',
        'gkd/planning/mmdet3.py', 'gkd/recipes/mmdet3.py'],
    3: ['gkd/*'],
}[mmdet_major()]
