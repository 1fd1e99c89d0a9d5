#!/usr/bin/env python
"""Try detectors of MMDetection's zoo as teachers and students, and tabulate what works.

Each pair trains a few steps of the distilling module with its default settings, one step of every
other method, and tests its student: without data and checkpoints, on small images, its backbones
with one block a stage, as narrow as can be. The detectors are those of the MMDetection that is
installed, 2 or 3. A pair is a process of its own; what has been checked is kept.
"""

import argparse
import os.path as osp
import sys
from fnmatch import fnmatch

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import add_device_option, run
from gkd.installed import mmdet_major
from studies.coverage import check_all
from studies.door import PAIRS, SELF_PAIRS
from studies.outcomes import pair_name, pair_of, write_tables
from studies.small_models import shorten_backbones


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help='configs of MMDetection as FOLDER/CONFIG, pairs as "TEACHER -> '
                             'STUDENT", or patterns of them (default: '
                             f'{len(SELF_PAIRS)} configs with themselves, and {len(PAIRS)} '
                             f'pairs)')
    parser.add_argument('--folder', default=osp.join('work_dirs', 'check_detectors',
                                                     f'mmdet{mmdet_major()}'),
                        help='where outcomes are kept (default: %(default)s)')
    add_device_option(parser)
    parser.add_argument('--again', action='store_true', help='check what has been checked, too')
    return parser.parse_args()


def main():
    args = parse_args()
    shorten_backbones()
    known = [(name, name) for name in SELF_PAIRS] + list(PAIRS)
    pairs = known
    if args.names:
        patterns = [name[:-3] if name.endswith('.py') else name for name in args.names]
        pairs = [pair for pair in known if any(fnmatch(pair_name(*pair), pattern)
                                               for pattern in patterns)]
        pairs += [pair_of(pattern) for pattern in patterns
                  if '*' not in pattern and pair_of(pattern) not in pairs]
    outcomes = check_all(pairs, args.folder, args.again,
                         say=lambda line: print(line, flush=True))
    print(write_tables(outcomes, args.folder))


if __name__ == '__main__':
    run(main)
