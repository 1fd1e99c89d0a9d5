"""Tables and a plot that compare methods by several runs of each."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gkd.datasets.coco_eval import METRICS
from gkd.report.drawing import plt, save
from gkd.report.intervals import confidence_interval
from gkd.report.names import NOTHING, PLAIN_STUDENT, TEACHER

SHOWN = ('AP', 'AP50')  # in a table of a single gain
GREY, BLUE = '#777777', '#1f77b4'


@dataclass
class Row:
    """A method and its runs.

    Attributes:
        name: The method.
        runs: Values by name of every run, by seed. APs are in percent; ``'time'`` is a step's in
            seconds, ``'memory'`` the peak in MiB.
        note: Why runs are missing.
    """

    name: str
    runs: dict[int, dict[str, float]] = field(default_factory=dict)
    note: str = ''

    def values(self, column: str) -> list[float]:
        """A value of all runs that have it."""
        return [run[column] for run in self.runs.values() if column in run]

    def gains(self, plain: Row, column: str) -> list[float]:
        """Differences to the plain student of the same seed.

        Both had the same start and saw the same images in the same order, so that the difference
        varies less than either does.

        Example:
            >>> plain = Row('plain student', {0: {'AP': 10.0}, 1: {'AP': 14.0}})
            >>> Row('gkd', {1: {'AP': 16.5}, 2: {'AP': 20.0}}).gains(plain, 'AP')
            [2.5]
        """
        return [run[column] - plain.runs[seed][column] for seed, run in self.runs.items()
                if column in run and column in plain.runs.get(seed, {})]


def gain_text(gains: Sequence[float]) -> str:
    """Mean of several gains with its 95 % confidence interval, or a dash if there are none.

    Example:
        >>> gain_text([1.0, 2.0, 3.0]), gain_text([1.25]), gain_text([])
        ('+2.0 [-0.5, +4.5]', '+1.2', '–')
    """
    return str(confidence_interval([gains])) if gains else NOTHING


def format_comparison(rows: Sequence[Row], columns: Sequence[str] = tuple(METRICS)) -> str:
    """Markdown table of all methods: APs, gain, time and memory.

    Args:
        rows: The methods; one of them should be the plain student.
        columns: APs to show.

    Example:
        >>> print(format_comparison([
        ...     Row('plain student', {0: {'AP': 10., 'time': .4, 'memory': 900.}}),
        ...     Row('gkd', {0: {'AP': 12.5, 'time': .6, 'memory': 950.}}),
        ...     Row('fgfi', note='refused: no anchors')], ['AP']))
        | method        | seeds | AP   | gain in AP | time per step      | peak memory       |
        | ------------- | ----- | ---- | ---------- | ------------------ | ----------------- |
        | plain student | 1     | 10.0 | –          | 0.400 s            | 900 MiB           |
        | gkd           | 1     | 12.5 | +2.5       | 0.600 s (+0.200 s) | 950 MiB (+50 MiB) |
        | fgfi          | 0     | –    | –          | –                  | –                 |
        <BLANKLINE>
        - fgfi: refused: no anchors
        <BLANKLINE>
    """
    plain = plain_of(rows)
    cells = [['method', 'seeds', *columns, 'gain in AP', 'time per step', 'peak memory']]
    for row in rows:
        compared = row.name not in (TEACHER, PLAIN_STUDENT)
        gains = row.gains(plain, 'AP') if compared else []
        cells.append([row.name, str(len(row.runs)),
                      *(cell(row.values(column)) for column in columns), gain_text(gains),
                      cost_cell(row, plain, 'time', '.3f', 's'),
                      cost_cell(row, plain, 'memory', '.0f', 'MiB')])
    return markdown(cells) + format_notes(rows)


def format_gain(results: Mapping[str, Sequence[dict[str, float]]]) -> str:
    """Markdown table of the metrics in percent, mean over seeds, and of the gain.

    The last row pairs the last two by seed: both students of a seed had the same start and saw the
    same images in the same order, so their difference varies less than either does. Several seeds
    give its 95 % confidence interval (Student's t).

    Example:
        >>> print(format_gain({'teacher': [{'bbox_mAP': 0.15, 'bbox_mAP_50': 0.5}],
        ...                    'alone': [{'bbox_mAP': 0.11, 'bbox_mAP_50': 0.4}],
        ...                    'distilled': [{'bbox_mAP': 0.13, 'bbox_mAP_50': 0.45}]}))
        |                    |                 AP |               AP50 |
        | ------------------ | -----------------: | -----------------: |
        | teacher            |               15.0 |               50.0 |
        | alone              |               11.0 |               40.0 |
        | distilled          |               13.0 |               45.0 |
        | gain               |               +2.0 |               +5.0 |
        <BLANKLINE>
    """
    lines = [f'| {"":18} | ' + ' | '.join(f'{name:>18}' for name in SHOWN) + ' |',
             f'| {"-" * 18} | ' + ' | '.join('-' * 17 + ':' for _ in SHOWN) + ' |']
    keys = [METRICS[name] for name in SHOWN]
    for name, runs in results.items():
        cells = [f'{cell([100 * run[key] for run in runs]):>18}' for key in keys]
        lines.append(f'| {name:18} | ' + ' | '.join(cells) + ' |')
    *_, alone, distilled = results.values()
    gains = [[100 * (after[key] - before[key]) for before, after in zip(alone, distilled)]
             for key in keys]
    lines.append(f'| {"gain":18} | ' + ' | '.join(f'{gain_text(gain):>18}'
                                                  for gain in gains) + ' |')
    return '\n'.join(lines) + '\n'


def format_columns(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Markdown table of any values, each with its gain over the plain student in parentheses.

    Example:
        >>> print(format_columns([Row('plain student', {0: {'blur 0 to 1': 10.}}),
        ...                       Row('gkd', {0: {'blur 0 to 1': 12.}})], ['blur 0 to 1']))
        | method        | seeds | blur 0 to 1 |
        | ------------- | ----- | ----------- |
        | plain student | 1     | 10.0        |
        | gkd           | 1     | 12.0 (+2.0) |
    """
    plain = plain_of(rows)
    cells = [['method', 'seeds', *columns]]
    for row in rows:
        cells.append([row.name, str(len(row.runs))])
        for column in columns:
            gains = row.gains(plain, column) if row.name not in (TEACHER, PLAIN_STUDENT) else []
            gain = f' ({statistics.mean(gains):+.1f})' if gains else ''
            cells[-1].append(cell(row.values(column)) + gain)
    return markdown(cells) + format_notes(rows)


def format_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The same as numbers: mean, spread and gain of every value, one line per method.

    Standard deviations of a single run are empty.

    Example:
        >>> print(format_csv([Row('plain student', {0: {'AP': 10.}, 1: {'AP': 12.}}),
        ...                   Row('gkd', {1: {'AP': 15.}})], ['AP']))
        method,seeds,AP mean,AP std,AP gain mean,AP gain std,note
        plain student,2,11.0000,1.4142,,,
        gkd,1,15.0000,,3.0000,,
    """
    plain = plain_of(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['method', 'seeds', *(f'{column} {part}' for column in columns for part in (
        'mean', 'std', 'gain mean', 'gain std')), 'note'])
    for row in rows:
        numbers = []
        for column in columns:
            gains = row.gains(plain, column) if row.name not in (TEACHER, PLAIN_STUDENT) else []
            for values in (row.values(column), gains):
                numbers.append(f'{statistics.mean(values):.4f}' if values else '')
                numbers.append(f'{statistics.stdev(values):.4f}' if len(values) > 1 else '')
        writer.writerow([row.name, len(row.runs), *numbers, row.note])
    return text.getvalue()


def draw_comparison(rows: Sequence[Row], title: str, path: str) -> None:
    """Write the picture of :func:`comparison_figure` into a PNG file."""
    save(comparison_figure(rows, title), path, dpi=130)


def comparison_figure(rows: Sequence[Row], title: str) -> plt.Figure:
    """The gains in AP over the plain student, by :func:`gains_figure`.

    Gains are drawn instead of APs, because students of several seeds differ more than methods do.

    Args:
        rows: The methods; those without runs are left out.
        title: Title of the picture.
    """
    plain = plain_of(rows)
    gains = {row.name: [row.gains(plain, 'AP')] for row in rows
             if row.name not in (PLAIN_STUDENT, TEACHER) and row.gains(plain, 'AP')}
    marks = [f'{row.name} {cell(row.values("AP"))} AP' for row in rows
             if row.name in (PLAIN_STUDENT, TEACHER) and row.values('AP')]
    return gains_figure(gains, '\n'.join([title, ', '.join(marks)]))


def gains_figure(gains: Mapping[str, Sequence[Sequence[float]]], title: str) -> plt.Figure:
    """Dot-and-whisker plot of gains in AP, the best on top.

    Args:
        gains: The gains of every method by its name, in groups as for
            :func:`~gkd.report.intervals.confidence_interval`.
        title: Title of the picture.
    """
    intervals = {name: confidence_interval(groups) for name, groups in gains.items()}
    drawn = sorted(gains, key=lambda name: intervals[name].mean)
    figure, axis = plt.subplots(figsize=(7.5, 1.7 + 0.4 * max(2, len(drawn))))
    axis.axvline(0, color=GREY, linewidth=1)
    for place, name in enumerate(drawn):
        values = [value for group in gains[name] for value in group]
        axis.plot(values, [place + 0.22] * len(values), 'o', color=BLUE, alpha=0.5, markersize=4,
                  markeredgewidth=0)
        gain = intervals[name]
        ends = None if gain.low is None else [[gain.mean - gain.low], [gain.high - gain.mean]]
        axis.errorbar(gain.mean, place, fmt='o', color=BLUE, markersize=7, capsize=4, xerr=ends)
    axis.set_yticks(range(len(drawn)),
                    [f'{name} ({intervals[name].count})' for name in drawn])
    axis.set_ylim(-0.6, max(0, len(drawn) - 1) + 0.6)
    axis.margins(x=0.08)
    axis.grid(axis='x', alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_xlabel('gain in AP over the student that trained on alone\n'
                    'small dots: single pairs, their number in parentheses\n'
                    'large dots: mean with its 95 % confidence interval')
    axis.set_title(title, fontsize=11)
    figure.tight_layout()
    return figure


def plain_of(rows: Sequence[Row]) -> Row:
    """The plain student's row, without runs if there is none."""
    return next((row for row in rows if row.name == PLAIN_STUDENT), Row(PLAIN_STUDENT))


def cell(values: Sequence[float]) -> str:
    """Mean, or a dash."""
    return f'{statistics.mean(values):.1f}' if values else NOTHING


def cost_cell(row: Row, plain: Row, column: str, digits: str, unit: str) -> str:
    """Mean of a cost and, in parentheses, its difference to the plain student's."""
    values = row.values(column)
    if not values:
        return NOTHING
    extra = row.gains(plain, column) if row.name != PLAIN_STUDENT else []
    more = f' ({statistics.mean(extra):+{digits}} {unit})' if extra else ''
    return f'{statistics.mean(values):{digits}} {unit}{more}'


def format_notes(rows: Sequence[Row]) -> str:
    """The notes on methods, as a list."""
    notes = [f'- {row.name}: {row.note}\n' for row in rows if row.note]
    return '\n' + ''.join(notes) if notes else ''


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    head, *body = [[text.ljust(width) for text, width in zip(row, widths)] for row in cells]
    return ''.join('| ' + ' | '.join(row) + ' |\n'
                   for row in [head, ['-' * width for width in widths], *body])
