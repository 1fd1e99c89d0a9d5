"""Lists with one record per image, as the authors' code of the method reads them.

A JSON object ``{file: {"height": h, "width": w, "content_ann": {...}}}`` with ``bboxes`` as
``x1, y1, x2, y2`` or polygons ``x1, y1, x2, y2, ...`` in pixels, ``labels`` as one list a box that
begins with the class's name or its index from 0, and optionally ``cares``, 0 for boxes to ignore.
A key ``"###"`` holds a comment. Class names are in a file of their own, ``{"classes": [...]}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gkd.datasets.annotations import Annotations, Collector, Image
from gkd.datasets.coco_json import shortest
from gkd.datasets.json_stream import read_pairs, text_written_whole, write_pairs
from gkd.errors import DataError

COMMENT = '###'


def read_classes(path: str) -> list[str]:
    """Class names of a ``classes_config.json``.

    Args:
        path: A JSON file ``{"classes": [...]}``; the key ``classes_0`` is understood as well.

    Raises:
        DataError: The file is missing or holds no class names.
    """
    pairs = dict(read_pairs(path))
    classes = pairs.get('classes', pairs.get('classes_0'))
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f'{path}: no list of class names under "classes".')
    if len(set(classes)) < len(classes):
        raise DataError(f'{path}: a class is named twice.')
    return classes


def read_records(path: str, classes: Sequence[str]) -> Annotations:
    """Read a list of records; images, annotations and categories are numbered from 1.

    Args:
        path: The list.
        classes: Class names, in the order of the labels.

    Raises:
        DataError: A record is broken, or names a class that is not among ``classes``.
    """
    images, collector = {}, Collector()
    labels = {name: label for label, name in enumerate(classes)}
    for name, record in read_pairs(path):
        if name == COMMENT:
            continue
        try:
            images[len(images) + 1] = Image(name, int(record['width']), int(record['height']))
            for box, label, care in _instances(record['content_ann'], labels):
                collector.add(len(images), label + 1, box, not care)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f'{path}, record {name!r}: {type(error).__name__}: {error}. A record is '
                '{"height": h, "width": w, "content_ann": {"bboxes": [[x1, y1, x2, y2], ...], '
                '"labels": [[class], ...]}}.') from None
    if not images:
        raise DataError(f'{path} holds no records.')
    return collector.annotations(images, dict(enumerate(classes, start=1)))


def write_records(annotations: Annotations, path: str, classes: Sequence[str]) -> None:
    """Write a list of records: all images, with their boxes of the given classes.

    Args:
        annotations: The annotations.
        path: The file; it appears whole or not at all.
        classes: Names of the classes to keep, in the order of their labels.

    Raises:
        DataError: A class is missing, or something that a record cannot hold.
    """
    named = set(annotations.categories.values())
    missing = [name for name in classes if name not in named]
    if missing:
        raise DataError(f'no category is named {missing[0]!r}; there are '
                        f'{", ".join(sorted(named))}.')
    files = [image.file for image in annotations.images.values()]
    if len(set(files)) < len(files):
        raise DataError('two images have the same file name; a record has no other name.')
    annotations.require_sound()
    with text_written_whole(path) as file:
        write_pairs(file, _records(annotations, classes))


def _records(annotations: Annotations, classes: Sequence[str]) -> Iterator[tuple[str, dict]]:
    names = {number: name for number, name in annotations.categories.items() if name in classes}
    order = np.argsort(annotations.image_ids, kind='stable')
    order = order[np.isin(annotations.category_ids[order], list(names))]
    image_ids = annotations.image_ids[order]
    starts = np.searchsorted(image_ids, list(annotations.images), 'left')
    ends = np.searchsorted(image_ids, list(annotations.images), 'right')
    for image, start, end in zip(annotations.images.values(), starts, ends):
        rows = order[start:end]
        corners = annotations.boxes[rows]
        corners[:, 2:] += corners[:, :2]
        content = dict(bboxes=[[shortest(value) for value in box] for box in corners.tolist()],
                       labels=[[names[label]]
                               for label in annotations.category_ids[rows].tolist()])
        if annotations.ignored[rows].any():
            content['cares'] = [int(not ignored) for ignored in annotations.ignored[rows]]
        yield image.file, dict(height=image.height, width=image.width, content_ann=content)


def _instances(content: dict, labels: dict[str, int]) -> Iterator[tuple[list, int, bool]]:
    """Box as x, y, width, height; label; whether to care for it."""
    boxes, given = content.get('bboxes', []), content.get('labels', [])
    cares = content.get('cares', [1] * len(boxes))
    if not len(boxes) == len(given) == len(cares):
        raise ValueError(f'{len(boxes)} bboxes, {len(given)} labels and {len(cares)} cares')
    for points, label, care in zip(boxes, given, cares):
        columns, rows = points[0::2], points[1::2]
        if len(points) < 4 or len(columns) != len(rows):
            raise ValueError(f'bbox {points} is neither x1, y1, x2, y2 nor a polygon')
        x, y = min(columns), min(rows)
        yield [x, y, max(columns) - x, max(rows) - y], _label(label, labels), care == 1


def _label(label: Any, labels: dict[str, int]) -> int:
    first = label[0] if isinstance(label, list) else label
    if isinstance(first, str):
        if first not in labels:
            raise ValueError(f'class {first!r} is none of the {len(labels)} class names')
        return labels[first]
    if first not in range(len(labels)):
        raise ValueError(f'label {first!r} is no index from 0 to {len(labels) - 1}')
    return int(first)
