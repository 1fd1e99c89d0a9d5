"""The report's figures as plotly objects; the page draws them in its own colours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Optional

import plotly.graph_objects as go

from gkd.datasets.coco_eval import METRICS
from gkd.report.names import PLAIN_STUDENT, TEACHER
from gkd.report.runs import DETECTOR, DISTILLED, Run
from gkd.report.validation import Precision
from gkd.work_dir import BINS

# Colours that people with red-green blindness can tell apart, on white and on black.
SHADES = {
    TEACHER: ['#8f78d8', '#b08fe0', '#6f5bb8'],
    DETECTOR: ['#3a8fd0', '#6db3e6', '#2f6fa5', '#8ac7ee'],
    PLAIN_STUDENT: ['#d98a1f', '#efb35c', '#b36b0d', '#f5cd8f'],
    DISTILLED: ['#3a8fd0', '#6db3e6', '#2f6fa5', '#8ac7ee'],
}
PARTS = {'data': '#8d99a6', 'student': '#3a8fd0', 'teacher': '#8f78d8', 'knowledge': '#3aa675',
         'backward': '#d98a1f', 'other': '#bcbcbc', 'step': '#3a8fd0'}
PART_NAMES = {'data': 'waiting for data', 'student': 'student, forward',
              'teacher': 'teacher, forward', 'knowledge': 'knowledge, forward',
              'backward': 'backward and update', 'other': 'other',
              'step': 'step without data (not split)'}
SIZES = {'all': METRICS['AP'], **{size: METRICS[f'AP {size}']
                                  for size in ('small', 'medium', 'large')}}
GREY = '#888888'


def colours(runs: Sequence[Run]) -> dict[str, str]:
    """A colour for each run's name; runs of one role get shades of one colour."""
    count: dict[str, int] = defaultdict(int)
    chosen = {}
    for run in runs:
        shades = SHADES[run.role]
        chosen[run.name] = shades[count[run.role] % len(shades)]
        count[run.role] += 1
    return chosen


def figure(x: str, y: str, height: int = 260, **layout) -> go.Figure:
    """An empty figure with named axes."""
    return go.Figure(layout=dict(
        height=height, margin=dict(l=52, r=16, t=12, b=44), hovermode='closest', showlegend=False,
        # Small numbers such as learning rates as 8e-4: Plotly would write 800µ.
        xaxis=dict(title=dict(text=x)), yaxis=dict(title=dict(text=y), exponentformat='e'),
        **layout))


def common_unit(runs: Sequence[Run]) -> str:
    """What the trainings are drawn over: steps if any of them counts those, else epochs."""
    return 'step' if any(run.length and not run.by_epoch for run in runs) else 'epoch'


def width(run: Run, unit: str) -> int:
    """How many of the common unit one of a run's own is."""
    return 1 if run.unit == unit else run.steps_per_epoch()


def draw_ap(runs: Sequence[Run]) -> Optional[go.Figure]:
    """AP after every evaluation; None if nothing was evaluated."""
    unit = common_unit(runs)
    plot = figure(unit, 'AP in percent')
    for run in runs:
        values = {done * width(run, unit): 100 * metrics[METRICS['AP']] for done, metrics in
                  sorted(run.evaluations.items()) if METRICS['AP'] in metrics}
        if values:
            plot.add_scatter(x=list(values), y=list(values.values()), name=run.name,
                             mode='lines+markers', line=dict(color=colours(runs)[run.name]),
                             hovertemplate=f'{unit} %{{x}}: AP %{{y:.1f}}')
    # Plotly would put several ticks into an epoch and round their labels to the same number.
    few = all(max(line.x) <= 10 for line in plot.data)
    plot.update_xaxes(tickformat='d', rangemode='tozero', dtick=1 if few else None)
    return plot if plot.data else None


def draw_sizes(runs: Sequence[Run], metrics: dict[str, dict[str, float]]) -> Optional[go.Figure]:
    """AP by size of the objects.

    Args:
        runs: What to compare.
        metrics: Metrics by name of the run; sizes of which there are no objects are left out.
    """
    known = {size: key for size, key in SIZES.items()
             if any(values.get(key, -1) >= 0 for values in metrics.values())}
    if not known:
        return None
    plot = figure('size of the objects', 'AP in percent', barmode='group', bargap=0.25)
    for run in runs:
        values = metrics.get(run.name, {})
        heights = [100 * values[key] if values.get(key, -1) >= 0 else None
                   for key in known.values()]
        plot.add_bar(x=list(known), y=heights, name=run.name,
                     marker=dict(color=colours(runs)[run.name]),
                     hovertemplate=f'{run.name}, %{{x}}: %{{y:.1f}}<extra></extra>')
    return plot


def draw_precision(runs: Sequence[Run],
                   precisions: dict[str, Precision]) -> dict[str, go.Figure]:
    """Precision over recall, one figure per IoU threshold, by its title."""
    plots = {}
    for run in runs:
        if run.name not in precisions:
            continue
        precision = precisions[run.name]
        for iou, curve in precision.curves.items():
            plot = plots.setdefault(iou, figure('recall', 'precision'))
            plot.add_scatter(x=precision.recall.round(2).tolist(), y=curve.round(4).tolist(),
                             name=run.name, mode='lines',
                             line=dict(color=colours(runs)[run.name]),
                             hovertemplate='recall %{x:.2f}: precision %{y:.2f}')
            plot.update_xaxes(range=[0, 1])
            plot.update_yaxes(range=[0, 1.02])
    return plots


def draw_losses(runs: Sequence[Run]) -> dict[str, go.Figure]:
    """Every loss term and the learning rate, with the decay of distillation, by its name."""
    plots: dict[str, go.Figure] = {}
    unit = common_unit(runs)
    for run in runs:
        for name, curve in run.curves().items():
            plot = plots.setdefault(name, figure(unit, '', 210))
            x, y = zip(*curve)
            plot.add_scatter(x=[done * width(run, unit) for done in x], y=y, name=run.name,
                             line=dict(color=colours(runs)[run.name]),
                             mode='lines' if len(curve) > 20 else 'lines+markers',
                             marker=dict(size=5), hovertemplate='%{x:.2f}: %{y:.4g}')
            plot.update_layout(yaxis=dict(rangemode='tozero'))
    distilled = [run for run in runs if run.is_distilled and run.length]
    taught = {name for run in distilled for name in run.curves()}
    longest = max(distilled, key=lambda run: run.length * width(run, unit), default=None)
    for name in taught - {'lr'}:
        add_decay(plots[name], longest.length * width(longest, unit),
                  1 if unit == 'epoch' else longest.steps_per_epoch())
    # The sum first, the learning rate last.
    return dict(sorted(plots.items(), key=lambda entry: (entry[0] != 'loss', entry[0] == 'lr')))


def add_decay(plot: go.Figure, length: int, epoch: int) -> None:
    """Draw the factor that falls from epoch to epoch, on an axis of its own at the right.

    Args:
        plot: Where it is drawn.
        length: Of the training, in units of the plot.
        epoch: Of an epoch, likewise.
    """
    x = [*range(0, length, epoch), length]
    plot.add_scatter(x=x, y=[1 - done / length for done in x],
                     name='decay', yaxis='y2', mode='lines', hovertemplate='decay %{y:.2f}',
                     line=dict(color=GREY, dash='dot', width=1.5, shape='hv'))
    plot.update_layout(margin=dict(r=40), yaxis2=dict(
        overlaying='y', side='right', range=[0, 1.05], showgrid=False, tickvals=[0, 0.5, 1],
        zeroline=False))


def draw_weights(run: Run) -> dict[str, go.Figure]:
    """How a run's robust weights are distributed in every epoch, one figure per level."""
    epochs = {int(number): epoch['robust_weights']
              for number, epoch in run.record.get('epochs', {}).items()
              if any(map(any, epoch.get('robust_weights', ())))}
    if not epochs:
        return {}
    centres = [(bin + 0.5) / BINS for bin in range(BINS)]
    lowest = min(bin / BINS for counts in epochs.values() for level in counts
                 for bin, count in enumerate(level) if count)
    colour = SHADES[run.role][0]
    red, green, blue = bytes.fromhex(colour[1:])
    clear = f'rgba({red}, {green}, {blue}, 0)'  # plotly 5 refuses '#rrggbb00'
    plots = {}
    for level in range(len(next(iter(epochs.values())))):
        rows = {epoch: counts[level] for epoch, counts in sorted(epochs.items())
                if sum(counts[level])}
        if not rows:
            continue
        shares = [[count / sum(counts) for count in counts] for counts in rows.values()]
        means = [sum(share * centre for share, centre in zip(row, centres)) for row in shares]
        plot = figure('epoch', 'robust weight', 230)
        plot.add_heatmap(x=list(rows), y=centres, z=list(map(list, zip(*shares))), zmin=0,
                         colorscale=[[0, clear], [1, colour]], showscale=False,
                         hovertemplate='epoch %{x}, weight %{y:.3f}: %{z:.1%}<extra></extra>')
        plot.add_scatter(x=list(rows), y=means, name='mean', mode='lines+markers',
                         line=dict(color=SHADES[PLAIN_STUDENT][0]), hovertemplate='mean %{y:.3f}')
        plot.update_yaxes(range=[lowest, 1])
        plot.update_xaxes(tickvals=list(rows) if len(rows) <= 12 else None, tickformat='d')
        plots[f'level {level}'] = plot
    return plots


def draw_time(runs: Sequence[Run]) -> Optional[go.Figure]:
    """Where the time of a step goes, one bar per run; None if nothing is known."""
    seconds = {run.name: run.step_seconds() for run in runs}
    seconds = {name: parts for name, parts in seconds.items() if parts}
    if not seconds:
        return None
    plot = figure('milliseconds a step', '', 80 + 46 * len(seconds), barmode='stack',
                  bargap=0.35)
    names = list(reversed(seconds))
    for part, title in PART_NAMES.items():
        lengths = [1000 * seconds[name].get(part, 0.0) for name in names]
        if any(lengths):
            plot.add_bar(y=[name.replace(' (', '<br>(') for name in names], x=lengths, name=title,
                         orientation='h', marker=dict(color=PARTS[part]),
                         hovertemplate=f'{title}: %{{x:.0f}} ms<extra></extra>')
    plot.update_layout(margin=dict(l=8))
    plot.update_yaxes(automargin=True)
    return plot


def parts_of(plot: go.Figure) -> dict[str, str]:
    """Name and colour of the parts that :func:`draw_time` has drawn."""
    return {bar.name: bar.marker.color for bar in plot.data}


def metrics_of(run: Run, precisions: dict[str, Precision]) -> dict[str, float]:
    """A run's last metrics: as training measured them, else from its saved detections."""
    if run.evaluations:
        return run.evaluations[max(run.evaluations)]
    found = precisions.get(run.name)
    return found.metrics if found else {}
