#!/usr/bin/env python
"""Put the noise studies of several pairs of teacher and student into one table.

    python studies/noise_pairs.py work_dirs/noise_pairs/digits

reads TEACHER/STUDENT/noise_study.csv below the folder, which tools/noise_study.py writes. A change
is the mean over pairs, and in brackets its 95 % confidence interval, by a hierarchical bootstrap
over teachers and students.
"""

import argparse
import csv
import glob
import os.path as osp
import sys
from itertools import groupby

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import run
from gkd.errors import DataError
from gkd.report.intervals import confidence_interval
from studies.corruptions import CORRUPTIONS
from studies.noise_study import ALL, OWN

# What the claim is about, and which way it should go.
CLAIMED = {'discrepancy': 1, 'weight': -1}


def read_changes(folder: str) -> list[list[dict]]:
    """The changes from no to the most corruption of every pair, a list of pairs a teacher.

    Args:
        folder: Holds ``TEACHER/STUDENT/noise_study.csv``.

    Returns:
        For every teacher a list of its pairs, each a dict from measure, place and corruption to
        the change and the half width of its confidence band.

    Raises:
        DataError: There is no such file.
    """
    paths = sorted(glob.glob(osp.join(glob.escape(folder), '*', '*', 'noise_study.csv')))
    if not paths:
        raise DataError(f'{folder}: no TEACHER/STUDENT/noise_study.csv; run tools/noise_study.py '
                        f'--out {folder}/TEACHER/STUDENT for every pair.')
    return [[strongest(path) for path in group]
            for _, group in groupby(paths, key=lambda path: osp.dirname(osp.dirname(path)))]


def strongest(path: str) -> dict[tuple[str, str, str], tuple[float, float]]:
    """The changes up to the highest degree in one file."""
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    highest = max(float(row['degree']) for row in rows)
    return {(row['measure'], row['level'], row['corruption']):
            (float(row['change']), float(row['half_band_of_change']))
            for row in rows if float(row['degree']) == highest}


def cells(teachers: list[list[dict]], key: tuple[str, str, str], way: int) -> tuple[str, str]:
    """A change over all pairs, and in how many it goes clearly as claimed, or clearly against."""
    groups = [[pair[key] for pair in pairs] for pairs in teachers]
    found = confidence_interval([[change for change, _ in pairs] for pairs in groups])
    interval = '' if found.low is None else f' [{found.low:+.3f}, {found.high:+.3f}]'
    changes = [way * change / max(half, 1e-12) for pairs in groups for change, half in pairs]
    return (f'{found.mean:+.3f}{interval}',
            f'{sum(change > 1 for change in changes)}, {sum(change < -1 for change in changes)}')


def table(teachers: list[list[dict]]) -> str:
    """The table in Markdown."""
    count = sum(map(len, teachers))
    lines = [f'| on | corruption | discrepancy | rises, falls clearly (of {count}) | '
             f'robust weight | falls, rises clearly (of {count}) |',
             '| --- | --- | ---: | ---: | ---: | ---: |']
    for where in (OWN, ALL):
        for kind in CORRUPTIONS:
            parts = [part for measure, way in CLAIMED.items()
                     for part in cells(teachers, (measure, where, kind), way)]
            lines.append(f'| {where} | {kind} | ' + ' | '.join(parts) + ' |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='holds TEACHER/STUDENT/noise_study.csv')
    print(table(read_changes(parser.parse_args().folder)))


if __name__ == '__main__':
    run(main)
