"""``python -m gkd.prototypes plan CONFIG``: what the generation of prototypes will take."""

import runpy

if __name__ == '__main__':
    runpy.run_module('gkd.experiments.prototype_plan', run_name='__main__')
