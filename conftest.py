"""Doctests: modules that only one MMDetection can import are looked at where it is installed."""

from gkd.installed import mmdet_major

OTHERS = {
    2: ['gkd/compat/engine.py', 'gkd/engine', 'gkd/frameworks/mmdet3.py'],
    3: ['gkd/compat/coco.py', 'gkd/compat/parallel.py', 'gkd/compat/progress.py',
        'gkd/compat/runner.py', 'gkd/frameworks/mmdet2.py'],
}
collect_ignore = OTHERS[mmdet_major()]
