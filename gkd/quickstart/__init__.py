"""The quickstart with MMDetection 3, and the names and texts that it shares with that of 2."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from gkd.comparison.methods import OWN
from gkd.comparison.plan import Comparison
from gkd.report.names import PLAIN_STUDENT

FAMILIES = dict(retinanet='RetinaNet', faster_rcnn='FasterRCNN')  # with their types
ROWS = ('teacher', 'student', 'student, continued', 'student, distilled')


def closing_text(what: str, seeds: Sequence[int], started: float, table: str,
                 places: Mapping[str, str]) -> str:
    """What the quickstart prints at its end.

    Args:
        what: The detectors and the data.
        seeds: Those of the students.
        started: When it started, in seconds since the epoch.
        table: The metrics.
        places: What can be looked at or run next, by name.
    """
    minutes = (time.time() - started) / 60
    lines = '\n'.join(f'{name + ":":11}{place}' for name, place in places.items())
    return (f'\n{what}, validation, seeds {" ".join(map(str, seeds))}, {minutes:.1f} min:\n\n'
            f'{table}\n{lines}')


def metrics_by_row(comparison: Comparison) -> dict[str, list[dict[str, float]]]:
    """Metrics of all runs, by the name of their row in the table."""
    teacher, *students = comparison.preparation
    rows = ([teacher], students, comparison.runs[PLAIN_STUDENT].values(),
            comparison.runs[OWN].values())
    return {name: [training.metrics() for training in trainings]
            for name, trainings in zip(ROWS, rows)}
