"""Summarise a training in a few lines: metrics, costs, and the commands that come next."""

from __future__ import annotations

import os.path as osp
import shlex
from glob import escape, glob
from typing import Any

from tqdm import tqdm

from gkd.datasets.coco_eval import METRICS
from gkd.detectors.entries import name_of
from gkd.detectors.source import DetectorSource
from gkd.distiller import Distiller
from gkd.report.comparison import markdown
from gkd.report.names import NOTHING
from gkd.report.page import as_percent, peak_memory, relative_path
from gkd.report.runs import Run, median_step, read_run
from gkd.repository import tool
from gkd.work_dir import LATEST, REPORT

NAMES = {key: name for name, key in METRICS.items()}


def format_summary(work_dir: str, config: str) -> str:
    """Summarise a training.

    Args:
        work_dir: Its work dir.
        config: Path of the config to name in commands.

    Returns:
        Several lines of text.

    Raises:
        GKDError: The folder holds no training.
    """
    run = read_run(work_dir)
    checkpoint = osp.join(work_dir, LATEST)
    checkpoint = checkpoint if osp.isfile(checkpoint) else run.checkpoint
    best = sorted(glob(osp.join(escape(work_dir), 'best_*.pth')), key=osp.getmtime)
    lines = {'model': describe(run), 'training': training(run), 'memory': memory(run)}
    if checkpoint:
        arguments = shlex.join([relative_path(config), relative_path(checkpoint)])
        lines['checkpoint'] = ', best: '.join(map(relative_path, [checkpoint, *best[-1:]]))
        report = osp.join(work_dir, REPORT)
        # With MMDetection 3 a hook of the config writes it.
        lines['report'] = relative_path(report) if osp.isfile(report) else (
            f'python {tool("report.py")} {shlex.quote(relative_path(work_dir))}')
        lines['test'] = f'bash {tool("test.sh")} {arguments}'
        if run.config.model.type == Distiller.__name__:
            lines['export'] = f'python {tool("export_student.py")} {arguments}'
    width = max(map(len, lines)) + 2
    text = ''.join(f'{name + ":":{width}}{line}\n' for name, line in lines.items() if line)
    return f'{metrics_table(run)}\n{text}' if run.evaluations else text


def summarise(work_dir: str, config: str) -> str:
    """The same, or why there is none: a run that is done must not fail here."""
    try:
        return format_summary(work_dir, config)
    except Exception as error:
        return f'{work_dir} could not be summarised ({type(error).__name__}: {error}).'


def metrics_table(run: Run) -> str:
    """Metrics in percent, of the best and the last evaluation."""
    last = max(run.evaluations)
    known = [name for name in run.evaluations[last] if name in NAMES]
    names = (known or list(run.evaluations[last]))[:3]
    values = {epoch: [metrics.get(name, -1) for name in names]
              for epoch, metrics in run.evaluations.items()}
    best = max(values, key=lambda epoch: (values[epoch][:1], epoch))
    cells = [['', *(NAMES.get(name, name).rjust(5) for name in names)]]
    for title, epoch in {'best': best, 'last': last}.items():
        if title == 'last' or best != last:
            cells.append([f'{title}, {run.unit} {epoch}',
                          *(f'{as_percent(name, value):5.1f}' if value >= 0 else NOTHING.rjust(5)
                            for name, value in zip(names, values[epoch]))])
    return markdown(cells)


def describe(run: Run) -> str:
    """What was trained."""
    model = run.config.model
    if model.type != Distiller.__name__:
        return detector(model)
    student, teacher = (detector(DetectorSource.parse(model[role], f'model.{role}').model_config())
                        for role in ('student', 'teacher'))
    return f'{student}, taught by {teacher}' if run.is_distilled else student


def detector(model: dict[str, Any]) -> str:
    """Name of a detector.

    Example:
        >>> detector(dict(type='RetinaNet', backbone=dict(type='ResNet', depth=50)))
        'RetinaNet on ResNet-50'
        >>> detector(dict(type='RetinaNet', backbone=dict(type='MobileNetV2')))
        'RetinaNet on MobileNetV2'
    """
    backbone = model['backbone']
    depth = f'-{backbone["depth"]}' if 'depth' in backbone else ''
    return f'{name_of(model["type"])} on {name_of(backbone["type"])}{depth}'


def training(run: Run) -> str:
    """How long it was trained, and how long that took."""
    done = f'{run.trained:g}' if run.by_epoch else f'{run.trained}'
    text = f'{done} {run.unit}{"s" * (run.trained != 1)}'
    if 'seconds' in run.record:
        text += f' in {tqdm.format_interval(run.record["seconds"])}'
    step = median_step(run.lines)
    return text if step is None else f'{text}, median step {step:.3f} s without loading data'


def memory(run: Run) -> str:
    """Peak memory, empty if it is not known."""
    of_gpu = any('memory' in line for line in run.lines)
    peak = peak_memory(run)
    return f'{peak:.0f} MiB, peak of the {"GPU" if of_gpu else "process"}' if peak else ''
