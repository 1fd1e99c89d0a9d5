"""Make the report: one HTML file that needs no network."""

from __future__ import annotations

import os.path as osp
import shlex
import statistics
from collections.abc import Sequence
from typing import Any, Optional

from gkd.datasets.coco_eval import METRICS
from gkd.report import figures
from gkd.report.names import NOTHING, PLAIN_STUDENT, TEACHER
from gkd.report.runs import (
    DISTILLED,
    Run,
    read_json,
    read_runs,
    same_validation,
)
from gkd.report.templates import write_page
from gkd.report.validation import Picture, Precision, Validation, read_detections
from gkd.work_dir import PROCESS

MEMORY = {'student': 'weights of the student', 'teacher': 'weights of the teacher',
          'knowledge': 'weights of the knowledge'}
KEPT = {'student': 'kept by the student for the backward pass', 'teacher': 'kept by the teacher',
        'knowledge': 'kept by the knowledge for the backward pass'}


def write_report(work_dir: str, others: Sequence[str], path: str) -> None:
    """Write the report of a run, compared with its teacher and other runs.

    Args:
        work_dir: Work dir of the run. The report leaves out what is missing there.
        others: Work dirs to compare it with.
        path: HTML file to write.

    Raises:
        GKDError: A folder holds no training, or the file cannot be written.
    """
    main, runs = read_runs(work_dir, others)
    validation = Validation(main.config)
    for run in runs:
        if not same_validation(run.config, main.config):
            run.evaluations = {}  # not to be compared
    precisions, pictures, notes = evaluate(main, runs, validation)
    colours, steps = figures.colours(runs), figures.draw_time(runs)
    metrics = {run.name: figures.metrics_of(run, precisions) for run in runs}
    columns = columns_of(metrics)
    write_page(
        path, 'report.jinja',
        title=osp.basename(osp.abspath(work_dir)), main=main, runs=runs,
        colours=colours, state=state(main), summary=summarize(runs, metrics),
        columns=list(columns), table=ap_table(runs, metrics, columns), notes=notes,
        pictures=pictures, as_coco=columns is METRICS,
        unit=figures.common_unit(runs),
        shown={name: colours[name] for name in precisions},
        ap=figures.draw_ap(runs), sizes=figures.draw_sizes(runs, metrics),
        precision=figures.draw_precision(runs, precisions), losses=figures.draw_losses(runs),
        weights={run.name: figures.draw_weights(run) for run in runs},
        time=steps, parts=figures.parts_of(steps) if steps else {}, memory=memory_table(runs),
        versions=versions_table(runs))


def evaluate(main: Run, runs: Sequence[Run], validation: Validation,
             ) -> tuple[dict[str, Precision], list[Picture], list[str]]:
    """Evaluate the saved detections of all runs on the same data.

    Returns:
        Results by name of the run, the images on which they differ most, and notes on runs
        without results.
    """
    if validation.problem:
        return {}, [], [validation.problem]
    detections, missing, notes = {}, [], []
    for run in runs:
        if not same_validation(run.config, main.config):
            notes.append(f'The {run.name} was validated on other data, its AP is left out.')
            continue
        found = read_detections(run.detections)
        if found is None:
            missing.append(run.name)
        else:
            detections[run.name] = found
    if missing:
        folders = [run.work_dir for run in runs if run.work_dir and run is not main]
        command = shlex.join(['python', '-m', 'gkd.report', main.work_dir, *folders])
        notes.append(f'No detections are saved of: {", ".join(missing)}. To run them on the '
                     f'validation images and make the report anew: {command}')
    precisions = {name: validation.precision(found) for name, found in detections.items()}
    pictures = validation.pictures(list(detections.values())) if detections else []
    if detections and not pictures:
        notes.append(f'The images in {validation.folder} are not in reach.')
    return precisions, pictures, notes


def state(run: Run) -> str:
    """How far a run is."""
    done = f'{run.trained:.4g}' if run.by_epoch else f'{run.trained}'
    if run.trained >= (run.length or 0):
        return f'trained for {done} {run.unit}{"s" * (done != "1")}'
    return f'not finished: {done} of {run.length} {run.unit}s'


def summarize(runs: Sequence[Run], metrics: dict[str, dict[str, float]]) -> str:
    """The result in a sentence; empty without one."""
    means = role_means(runs, metrics)
    if DISTILLED not in means:
        return ''
    text = f'The distilled student reaches AP {means[DISTILLED]:.1f}'
    if PLAIN_STUDENT in means:
        gain = means[DISTILLED] - means[PLAIN_STUDENT]
        text += f', {abs(gain):.1f} {"more" if gain >= 0 else "less"} than the plain student'
    if TEACHER in means:
        text += f'; its teacher has {means[TEACHER]:.1f}'
    return text + '.'


def role_means(runs: Sequence[Run], metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean AP in percent of the runs of each role."""
    values: dict[str, list[float]] = {}
    for run in runs:
        if METRICS['AP'] in metrics[run.name]:
            values.setdefault(run.role, []).append(100 * metrics[run.name][METRICS['AP']])
    return {role: statistics.mean(aps) for role, aps in values.items()}


def columns_of(metrics: dict[str, dict[str, float]]) -> dict[str, str]:
    """Columns of the table of accuracy: the title and the metric's name.

    They are COCO's, or those that were measured where none of COCO's was, as of PASCAL VOC.

    Args:
        metrics: Metrics by name of the run.

    Example:
        >>> columns_of({'teacher': {}, 'student': {'mAP': 0.7, 'AP50': 0.7}})
        {'mAP': 'mAP', 'AP50': 'AP50'}
    """
    found = {name: name for values in metrics.values() for name in values}
    return METRICS if not found or METRICS['AP'] in found else found


def ap_table(runs: Sequence[Run], metrics: dict[str, dict[str, float]],
             columns: dict[str, str] = METRICS) -> list[dict[str, Any]]:
    """Rows of the table of accuracy.

    Args:
        runs: The runs, a row each.
        metrics: Metrics by name of the run.
        columns: As :func:`columns_of` gives them.

    Returns:
        Of each row ``run``, ``last``, ``cells`` and ``gain`` in AP over the plain student.
    """
    unit = figures.common_unit(runs)
    plain = role_means(runs, metrics).get(PLAIN_STUDENT)
    rows = []
    for run in runs:
        found = metrics[run.name]
        values = {name: found.get(name, -1) for name in columns.values()}
        gain = ''
        if run.role == DISTILLED and plain is not None and METRICS['AP'] in found:
            gain = f'{100 * found[METRICS["AP"]] - plain:+.1f}'
        last = max(run.evaluations, default=NOTHING)
        if run.evaluations and run.unit != unit:
            last = f'{run.unit} {last}'
        rows.append(dict(run=run, last=last, gain=gain,
                         cells=[f'{as_percent(name, value):.1f}' if value >= 0 else NOTHING
                                for name, value in values.items()]))
    return rows


def as_percent(name: str, value: float) -> float:
    """A metric in percent; those of panoptic data are already.

    Example:
        >>> as_percent('bbox_mAP', 0.25), as_percent('PQ_th', 40.5)
        (25.0, 40.5)
    """
    return value if name.rpartition('/')[2][:2] in ('PQ', 'SQ', 'RQ') else 100 * value


def memory_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Rows of the memory table, one cell per run; rows without any number are left out."""
    rows: dict[str, list[Optional[float]]] = {}
    for part, title in MEMORY.items():
        rows[title] = [run.record.get('weights', {}).get(part) for run in runs]
    for part, title in KEPT.items():
        rows[title] = [kept_memory(run, part) for run in runs]
    rows['peak of the GPU, else of the process'] = [peak_memory(run) for run in runs]
    return {title: [NOTHING if value is None else f'{value:.1f}' if value < 100 else f'{value:.0f}'
                    for value in values]
            for title, values in rows.items() if any(values)}


def kept_memory(run: Run, part: str) -> Optional[float]:
    """Most memory in MiB that a part of the step has left allocated on the GPU."""
    kept = [epoch['kept'].get(part, 0.0) for epoch in run.record.get('epochs', {}).values()
            if 'kept' in epoch]
    return max(kept, default=None)


def peak_memory(run: Run) -> Optional[float]:
    """Most memory in MiB that training has used."""
    logged = [line['memory'] for line in run.lines if 'memory' in line]
    process = read_json(osp.join(run.work_dir, PROCESS)) if run.work_dir else {}
    return max(logged, default=None) or run.record.get('peak') or process.get('peak_memory')


def versions_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Rows of versions and settings, one cell per run."""
    found = {}
    for run in runs:
        head = next((line for line in run.lines if 'config' in line), {})
        seed = run.record.get('seed', head.get('seed'))
        logged = dict(gkd=head.get('gkd_version'), mmdet=head.get('mmdet_version'))
        found[run.name] = {**run.record.get('versions', logged), 'seed': seed,
                           'processes': run.record.get('processes'),
                           'checkpoint': run.checkpoint and relative_path(run.checkpoint)}
    keys = dict.fromkeys(key for values in found.values() for key in values)
    rows = {key: [found[run.name].get(key) for run in runs] for key in keys}
    return {key: [NOTHING if value is None else str(value) for value in row]
            for key, row in rows.items() if any(value is not None for value in row)}


def relative_path(path: str) -> str:
    """A path relative to the working directory, if it is inside of it."""
    relative = osp.relpath(path)
    return path if relative.startswith(osp.pardir) else relative
