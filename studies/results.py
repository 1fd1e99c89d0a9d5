#!/usr/bin/env python
"""Make all tables and plots of results in the documentation from the rows in docs/data.

A page asks for them by a pair of comments:

    <!-- results: data=digit-scenes family=RetinaNet methods=gkd,no-global plot=images/a.png -->
    <!-- end of results -->

What stands between the two is replaced: a table of these methods, of the ``teacher``, ``student``
and ``plain`` trainings that their runs began from or are compared with, and the plot. Without
``methods``, all that were measured are shown; ``options`` may name settings that the runs
replaced, with ``;`` between them, ``strip`` one strip, ``teachers`` and ``students`` seeds, and
``mmdet=3`` the other MMDetection. Gains are over ``plain``, or over the method that ``against``
names, under the same teacher.
"""

import argparse
import os.path as osp
import re
import statistics
import sys
from collections import defaultdict
from glob import glob

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import run
from gkd.errors import DataError
from gkd.files import write_atomically
from gkd.report.comparison import gains_figure, markdown
from gkd.report.drawing import save
from gkd.report.intervals import confidence_interval
from gkd.report.names import NOTHING
from gkd.report.results import COLUMN_OF, PLAIN, STUDENT, TEACHER, Result, read_results
from gkd.repository import REPOSITORY

BLOCK = re.compile(r'(<!-- results:(.*?)-->\n)(.*?)(<!-- end of results -->)', re.DOTALL)
GAINS = ('AP', 'AP50')
NAMES = {TEACHER: 'teacher', STUDENT: 'student, before', PLAIN: 'student alone'}
KEYS = ('data', 'family', 'methods', 'options', 'strip', 'teachers', 'students', 'against',
        'mmdet', 'plot')
NOT_YET = 'Not measured yet.\n'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default=osp.join(REPOSITORY, 'docs', 'data'),
                        help='folder of the CSVs (default: docs/data)')
    parser.add_argument('pages', nargs='*', default=sorted(
        [osp.join(REPOSITORY, 'README.md'), *glob(osp.join(REPOSITORY, 'docs', '*.md'))]),
        help='pages to fill (default: README.md and docs/*.md)')
    return parser.parse_args()


def main():
    args = parse_args()
    results = [row for path in sorted(glob(osp.join(args.data, '*.csv')))
               for row in read_results(path)]
    for page in args.pages:
        with open(page, encoding='utf-8') as file:
            before = file.read()
        after = fill(before, page, results)
        if after != before:
            write_atomically(page, after)
            print(f'{osp.relpath(page)}: written')


def fill(text, page, results):
    """The text of a page with all its blocks of results made anew; plots are written."""
    def block(match):
        return match[1] + section(read_query(match[2], page), page, results) + match[4]

    return BLOCK.sub(block, text)


def read_query(text, page):
    """What a comment asks for, by key.

    Example:
        >>> read_query(' data=digit-scenes family=RetinaNet ', 'results.md')
        {'data': 'digit-scenes', 'family': 'RetinaNet'}
    """
    query = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', text))
    query = {key: value.strip('"') for key, value in query.items()}
    unknown = query.keys() - set(KEYS)
    if unknown or not {'data', 'family'} <= query.keys():
        raise DataError(f'{page}: <!-- results:{text}--> must say data and family, and may say '
                        f'{", ".join(KEYS[2:])}.')
    return query


def section(query, page, results):
    """Table, legend and plot that a page asks for."""
    rows = [row for row in results if row.data == query['data'] and row.family == query['family']
            and row.strip == query.get('strip', row.strip)
            and row.teacher_seed in ['', *query.get('teachers', row.teacher_seed).split(',')]
            and row.student_seed in ['', *query.get('students', row.student_seed).split(',')]
            and f'mmdet {query.get("mmdet", 2)}.' in row.version]
    options = query.get('options', '').replace(';', ' ')
    measured = dict.fromkeys(row.method for row in rows
                             if row.options == options and row.method not in NAMES)
    methods = [name for name in query.get('methods', ','.join(measured)).split(',')
               if name in measured]
    if not methods:
        return NOT_YET
    against = query.get('against', PLAIN)
    runs = paired([row for row in rows if row.method in methods and row.options == options],
                  rows, against)
    gains = {name: grouped_gains([row for row in runs if row.method == name], rows, against)
             for name in methods}
    text = f'{table(methods, gains, runs, rows, options)}\n{legend(runs, against)}\n'
    if 'plot' in query:
        title = f'{query["family"]} on {query["data"].replace("-", " ")}'
        drawn = {name: list(groups['AP'].values()) for name, groups in gains.items()
                 if groups['AP']}
        save(gains_figure(drawn, title), osp.join(osp.dirname(page), query['plot']))
        text += f'\n![Gains on {query["data"].replace("-", " ")}]({query["plot"]})\n'
    return text


def shared_options(options):
    """Those settings that a training without a teacher has too."""
    return ' '.join(option for option in options.split() if not option.startswith('model.'))


def partner(row: Result, against):
    """What a run and the one that it is compared with have in common.

    The teacher is not among it if that is the student that went on alone.
    """
    return (row.data, row.family, row.student_seed, row.strip, row.machine,
            shared_options(row.options), None if against == PLAIN else row.teacher_seed)


def partners(rows, against):
    """The runs that others are compared with, by what the two have in common."""
    return {partner(row, against): row for row in rows
            if row.method == against and 'model.' not in row.options}


def paired(runs, rows, against):
    """The runs that can be compared; all runs of a method of which none can be."""
    others = partners(rows, against)
    compared = {row.method for row in runs if partner(row, against) in others}
    return [row for row in runs
            if row.method not in compared or partner(row, against) in others]


def grouped_gains(runs, rows, against):
    """Gains over a method, by column and by teacher (its seed, strip and machine)."""
    others = partners(rows, against)
    gains = {column: defaultdict(list) for column in GAINS}
    for row in runs:
        other = others.get(partner(row, against))
        for column in GAINS:
            if other and getattr(row, column) and getattr(other, column):
                gains[column][row.teacher_seed, row.strip, row.machine].append(
                    float(getattr(row, column)) - float(getattr(other, column)))
    return gains


def baselines(name, rows, taught, options):
    """The trainings called ``name`` that runs began from or are compared with."""
    wanted = shared_options(options) if name == PLAIN else ''
    teachers, students = ({'', *(getattr(row, seed) for row in taught)}
                          for seed in ('teacher_seed', 'student_seed'))
    places = {(row.strip, row.machine) for row in taught}
    return [row for row in rows if row.method == name and row.options == wanted
            and row.teacher_seed in teachers and row.student_seed in students
            and (row.strip, row.machine) in places]


def table(methods, gains, taught, rows, options):
    """Markdown table: mean of every metric over runs, mean gains with their intervals."""
    shown = [column for column in COLUMN_OF.values() if any(getattr(row, column) for row in rows)]
    cells = [['taught', 'runs', *shown, *(f'gain in {column}' for column in GAINS), 'pairs',
              'higher AP']]
    for name in (*NAMES, *methods):
        runs = ([row for row in taught if row.method == name] if name in methods
                else baselines(name, rows, taught, options))
        if not runs:
            continue
        values = [[float(getattr(row, column)) for row in runs if getattr(row, column)]
                  for column in shown]
        line = [NAMES.get(name, name), str(len(runs)),
                *(f'{statistics.mean(value):.1f}' if value else NOTHING for value in values)]
        if name in NAMES:
            line += [NOTHING] * (len(GAINS) + 2)
        else:
            groups = [list(gains[name][column].values()) for column in GAINS]
            line += [str(confidence_interval(group)) if group else NOTHING for group in groups]
            pairs = [gain for group in groups[0] for gain in group]
            line += [str(len(pairs)), str(sum(gain > 0 for gain in pairs))]
        cells.append(line)
    return markdown(cells)


def legend(runs, against):
    """What the figures are, and where they come from."""
    def listed(values):
        return ', '.join(sorted(set(filter(None, values))))

    several = len({(row.teacher_seed, row.strip, row.machine) for row in runs}) > 1
    how = ('a hierarchical bootstrap over teachers, strips and seeds' if several
           else 'Student\'s t over seeds')
    strips = listed(row.strip for row in runs)
    other = ('the student that trained on alone' if against == PLAIN
             else f'`{against}` under the same teacher')
    return (f'Means in percent. Gains are differences to {other}, from the same start, '
            f'on the same images, on the same machine; in brackets the 95 % '
            f'confidence interval of the mean, by {how}. Teacher seeds: '
            f'{listed(row.teacher_seed for row in runs)}; student seeds: '
            f'{listed(row.student_seed for row in runs)}'
            f'{"; strips: " + strips if strips else ""}. '
            f'Higher AP: in how many of the pairs. '
            f'Machine: {listed(row.machine for row in runs)}.')


if __name__ == '__main__':
    run(main)
