"""The JSON logs of a training, a line of text for each of their lines."""

from __future__ import annotations

import json


def read_log(path: str) -> list[dict]:
    """Lines of a JSON log; one that was cut short ends it."""
    lines = []
    with open(path, encoding='utf-8') as file:
        for text in file:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def order(line: dict) -> tuple[int, bool, int]:
    """Place of a line among all of a run: evaluations come after the steps of their epoch."""
    return line['epoch'], line['mode'] == 'val', line['iter']
