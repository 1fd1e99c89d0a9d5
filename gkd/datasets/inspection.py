"""Inspection of COCO annotations: every field that a later step reads.

The file is in memory already, as dicts. Each field is taken out of all of them at once and checked
as a column, so that COCO's 860,000 boxes take about as long as reading their file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Callable, Optional

import numpy as np

from gkd.datasets.annotations import NO_BOX, NOT_LISTED, UNKNOWN_CATEGORY, box_faults
from gkd.errors import DataError

FORM = ('A COCO file is {"images": [{"id", "file_name", "width", "height"}, ...], "annotations": '
        '[{"id", "image_id", "category_id", "bbox": [x, y, width, height]}, ...], "categories": '
        '[{"id", "name"}, ...]}')
LEFT_OUT = 'they are left out'
# What follows from faults of boxes.
OUTCOMES = {'narrower or lower than a pixel': 'training leaves them out, evaluation counts them',
            'wholly outside of the image': 'training leaves them out, evaluation counts them',
            'over the border of the image by more than a pixel': 'they are used as they are'}


@dataclass
class Finding:
    """Something about some entries of a file.

    Attributes:
        what: What it is, as the end of "3 annotations ...".
        kind: ``'images'``, ``'annotations'`` or ``'categories'``.
        count: How many entries it is about.
        first: The first of them in words.
        outcome: What follows from it; empty for what makes the file unusable.
        completed: Whether it was harmless and is completed.
    """

    what: str
    kind: str
    count: int
    first: str
    outcome: str = ''
    completed: bool = False

    def __str__(self) -> str:
        text = f'{self.count:,} {self.kind} {self.what}, first {self.first}'
        return f'{text}: {self.outcome}' if self.outcome else text


class Inspection:
    """Check the content of a COCO file; what is missing and harmless is completed in it.

    Args:
        content: What the JSON file holds.

    Attributes:
        content: The content, completed.
        findings: What was found, in the order in which it was looked for.
        boxes: ``(n, 4)`` float64 ``x, y, width, height`` in pixels; NaN for what is no box.

    Raises:
        DataError: It does not have the form of a COCO file.

    Example:
        >>> content = dict(images=[dict(id=1, file_name='a.jpg', width=64, height=48)],
        ...                categories=[dict(id=1, name='cat')],
        ...                annotations=[dict(id=7, image_id=1, category_id=1, iscrowd=0,
        ...                                  bbox=[2, 3, 5, 4])])
        >>> print(*Inspection(content).findings)
        1 annotations without area, first annotation 7 of image 1 (a.jpg): that of the box is taken
        >>> content['annotations'][0]['area']
        20
    """

    def __init__(self, content: Any):
        check_form(content)
        self.content = content
        self.findings: list[Finding] = []
        self.images, self.annotations = content['images'], content['annotations']
        self.counted = np.zeros(len(self.annotations), bool)
        self.image_ids = self.index_ids('images')
        self.category_ids = self.index_ids('categories')
        self.check_images()
        self.check_names()
        self.check_annotation_ids()
        self.image_rows = self.check_references('image_id', self.image_ids, NOT_LISTED)
        self.check_references('category_id', self.category_ids, UNKNOWN_CATEGORY)
        self.boxes = self.check_boxes()
        self.check_flags()
        self.check_areas()

    @property
    def faults(self) -> list[Finding]:
        """What makes the file unusable."""
        return [finding for finding in self.findings if not finding.outcome]

    def add(self, kind: str, what: str, rows: Sequence[int], outcome: str = '',
            completed: bool = False, value: Optional[Callable[[int], Any]] = None) -> None:
        """Note a finding about the entries ``rows``, if there are any.

        An annotation that cannot be used, or is left out, is noted once.

        Args:
            kind: Their list in the file.
            what: What is the matter.
            rows: Positions in the list.
            outcome: What follows; empty if the file cannot be used.
            completed: Whether it was completed.
            value: Gives what an entry has, for the message.
        """
        rows = np.asarray(rows, np.int64)
        if kind == 'annotations' and not completed:
            rows = rows[~self.counted[rows]]
            self.counted[rows] = True
        if not len(rows):
            return
        first = self.describe(kind, int(rows[0]))
        if value is not None:
            first += f' with {short(value(int(rows[0])))}'
        self.findings.append(Finding(what, kind, len(rows), first, outcome, completed))

    def describe(self, kind: str, row: int) -> str:
        """An entry in words."""
        entry = self.content[kind][row]
        if kind == 'images':
            return f'image {short(entry.get("id"))} ({short(entry.get("file_name"))})'
        if kind == 'categories':
            return f'category {short(entry.get("id"))} ({short(entry.get("name"))})'
        image = entry.get('image_id')
        known = self.image_ids.get(image) if hashable(image) else None
        name = 'not listed' if known is None else short(self.images[known].get('file_name'))
        return f'annotation {short(entry.get("id"))} of image {short(image)} ({name})'

    def index_ids(self, kind: str) -> dict[Any, int]:
        """Position of every image or category by its id: all integers, or all text."""
        column = self.column(kind, 'id')
        kinds = list(map(id_type, column))
        self.add(kind, 'without an id that is an integer or text', where(kinds, None))
        numbers = kinds.count(int)
        fewer = str if 2 * numbers >= len(kinds) else int
        if 0 < numbers and str in kinds:
            self.add(kind, f'have {"text" if fewer is str else "an integer"} for an id, others '
                           f'{"integers" if fewer is str else "text"}', where(kinds, fewer))
        positions: dict[Any, int] = {}
        for row, (number, usable) in enumerate(zip(column, kinds)):
            if usable:
                positions.setdefault(number, row)
        if len(positions) < len(column) - kinds.count(None):
            self.add(kind, 'with the id of another', [
                row for row, (number, usable) in enumerate(zip(column, kinds))
                if usable and positions[number] != row])
        return positions

    def check_images(self) -> None:
        """Names and sizes of images."""
        names = self.column('images', 'file_name')
        # LVIS names images by their address.
        self.add('images', 'without a file_name', [
            row for row, name in enumerate(names) if not (isinstance(name, str) and name)
            and not isinstance(self.images[row].get('coco_url'), str)])
        for side in ('width', 'height'):
            column = self.column('images', side)
            values = as_numbers(column)
            self.add('images', f'without a {side} of at least one pixel',
                     np.flatnonzero(~(values >= 1)), value=column.__getitem__)
        self.sizes = np.stack([as_numbers(self.column('images', side))
                               for side in ('width', 'height')], axis=1)

    def check_names(self) -> None:
        """Names of categories."""
        names = self.column('categories', 'name')
        self.add('categories', 'without a name that is text',
                 [row for row, name in enumerate(names) if not isinstance(name, str)])

    def check_annotation_ids(self) -> None:
        """Ids of annotations: nothing refers to them, so that one that is missing can be given.

        pycocotools marks a matched detection by the id of its object; with 0 it would count as a
        false one, and an object with a negative id could be found twice.
        """
        column = self.column('annotations', 'id')
        if set(map(type, column)) <= {int}:
            given = column
        else:
            given = [number for number in column if id_type(number)]
        if len(set(given)) < len(given):
            seen: set = set()
            self.add('annotations', 'with the id of another', [
                row for row, number in enumerate(column)
                if id_type(number) and (number in seen or seen.add(number))])
        if len(given) == len(column) and set(map(type, given)) <= {int} and \
                min(given, default=1) > 0:
            return
        rows = [row for row, number in enumerate(column)
                if id_type(number) is not int or number < 1]
        self.add('annotations', 'without an id from 1 on', rows, 'they get one', completed=True)
        last = max((number for number in given if id_type(number) is int), default=0)
        for number, row in enumerate(rows, start=max(int(last), 0) + 1):
            self.annotations[row]['id'] = number

    def check_references(self, key: str, known: dict[Any, int], unknown: str) -> np.ndarray:
        """Rows of what annotations refer to, ``(n,)`` int64, -1 for what is not listed."""
        column = self.column('annotations', key)
        try:
            rows = np.array([known.get(number, -1) for number in column], np.int64)
        except TypeError:  # a list, which has no hash
            rows = np.array([known.get(number, -1) if hashable(number) else -1
                             for number in column], np.int64)
        lost = np.flatnonzero(rows < 0).tolist()
        if lost:
            wanted = id_type(next(iter(known), None))
            self.add('annotations', f'have no {key} that is {TYPES[wanted]}, as ids are', [
                row for row in lost if id_type(column[row]) is not wanted],
                value=column.__getitem__)
            self.add('annotations', unknown, lost, LEFT_OUT, value=column.__getitem__)
        return rows

    def check_boxes(self) -> np.ndarray:
        """Boxes: four finite numbers each, and where they lie."""
        column = self.column('annotations', 'bbox')
        boxes = as_boxes(column)
        self.add('annotations', f'have a bbox that is {NO_BOX}',
                 np.flatnonzero(~np.isfinite(boxes).all(axis=1)), value=column.__getitem__)
        sizes = np.where(self.image_rows[:, None] < 0, np.nan, self.sizes[self.image_rows])
        for what, mask in box_faults(boxes, sizes).items():
            self.add('annotations', what, np.flatnonzero(mask), OUTCOMES[what],
                     value=column.__getitem__)
        return boxes

    def check_flags(self) -> None:
        """``iscrowd`` and ``ignore``: 0 or 1, where text such as "0" would count as yes."""
        for key in ('iscrowd', 'ignore'):
            column = self.column('annotations', key)
            kinds = set(map(type, column))
            if not kinds <= {int, bool} or set(column) - {0, 1}:
                self.add('annotations', f'have an {key} that is neither 0 nor 1', [
                    row for row, value in enumerate(column) if value is not None
                    and not (isinstance(value, (int, float)) and value in (0, 1))],
                    value=column.__getitem__)
            if key == 'iscrowd' and type(None) in kinds:
                rows = where(column, None)
                self.add('annotations', 'without iscrowd', rows, 'they are taken for single '
                         'objects', completed=True)
                for row in rows:
                    self.annotations[row]['iscrowd'] = 0

    def check_areas(self) -> None:
        """Areas: training leaves out what has none, evaluation sorts by it."""
        column = self.column('annotations', 'area')
        if type(None) in set(map(type, column)):
            rows = where(column, None)
            self.add('annotations', 'without area', rows, 'that of the box is taken',
                     completed=True)
            areas = (self.boxes[:, 2] * self.boxes[:, 3]).tolist()
            for row in rows:
                area = areas[row]
                column[row] = self.annotations[row]['area'] = \
                    int(area) if area == area and area.is_integer() else area
        values = as_numbers(column)
        values[self.counted] = 1  # of these something worse is known
        self.add('annotations', 'have an area that is no finite number',
                 np.flatnonzero(np.isnan(values)), value=column.__getitem__)
        self.add('annotations', 'have no area above 0', np.flatnonzero(values <= 0),
                 'training leaves them out, evaluation counts them', value=column.__getitem__)

    def column(self, kind: str, key: str) -> list:
        """A field of all entries, None where it is missing."""
        return [entry.get(key) for entry in self.content[kind]]

    def summary(self) -> str:
        """What the file holds, in a line."""
        annotated = len(np.unique(self.image_rows[self.image_rows >= 0]))
        used = {number for number in self.column('annotations', 'category_id')
                if hashable(number)} & self.category_ids.keys()
        crowds = sum(map(bool, self.column('annotations', 'iscrowd')))
        return (f'{len(self.images):,} images, {annotated:,} of them annotated, with '
                f'{len(self.annotations):,} boxes of {len(used)} of {len(self.category_ids)} '
                f'classes; {crowds:,} are crowds or difficult')


TYPES = {int: 'an integer', str: 'text', None: 'an integer or text'}


def check_form(content: Any) -> None:
    """Raise DataError if lists of objects are missing; annotations may be (for testing only)."""
    if not isinstance(content, dict):
        raise DataError(f'it holds a {type(content).__name__}, no object. {FORM}.')
    content.setdefault('annotations', [])
    for kind in ('images', 'categories', 'annotations'):
        entries = content.get(kind)
        if not isinstance(entries, list):
            raise DataError(f'it has no list "{kind}". {FORM}.')
        if not set(map(type, entries)) <= {dict}:
            row = next(row for row, entry in enumerate(entries) if type(entry) is not dict)
            raise DataError(f'entry {row + 1} of "{kind}" is {short(entries[row])}, no object. '
                            f'{FORM}.')
        if not entries and kind != 'annotations':
            raise DataError(f'its list "{kind}" is empty. {FORM}.')


def mask_faults(annotations: Iterable[dict]) -> list[str]:
    """What is wrong with the masks of annotations; only training or evaluation of masks asks.

    Args:
        annotations: Sound ones otherwise.

    Returns:
        The broken ones in words.

    Example:
        >>> mask_faults([dict(id=1, image_id=3, segmentation=[[0, 0, 4, 0, 4, 4]]),
        ...              dict(id=2, image_id=3, segmentation=[])])
        ['annotation 2 of image 3 has the segmentation []']
    """
    return [f'annotation {entry["id"]} of image {entry["image_id"]} has the segmentation '
            f'{short(entry.get("segmentation"))}' for entry in annotations
            if not is_mask(entry.get('segmentation'))]


def is_mask(segmentation: Any) -> bool:
    """Whether it is a list of polygons, or a run-length code."""
    if isinstance(segmentation, dict):
        size = segmentation.get('size')
        return (isinstance(segmentation.get('counts'), (list, str, bytes))
                and isinstance(size, (list, tuple)) and len(size) == 2)
    return (isinstance(segmentation, list) and len(segmentation) > 0 and all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        and set(map(type, polygon)) <= {int, float} for polygon in segmentation))


def as_numbers(column: Sequence) -> np.ndarray:
    """A column as float64; NaN for what is no finite number."""
    if set(map(type, column)) <= {int, float}:
        try:
            values = np.array(column, np.float64)
        except OverflowError:
            values = np.array(list(map(as_number, column)))
    else:
        values = np.array(list(map(as_number, column)), np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def as_number(value: Any) -> float:
    """A number; NaN for anything else, and for integers that are too large."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.nan


def as_boxes(column: list) -> np.ndarray:
    """Boxes ``(n, 4)`` float64; NaN for what is not a list of four finite numbers."""
    if not set(map(type, column)) <= {list} or not set(map(len, column)) <= {4}:
        column = [box if isinstance(box, list) and len(box) == 4 else [None] * 4
                  for box in column]
    return as_numbers(list(chain.from_iterable(column))).reshape(-1, 4)


def id_type(value: Any) -> Optional[type]:
    """``int`` for integers, also as 3.0, ``str`` for text, None for what is no id."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int
    return str if type(value) is str else None


def hashable(value: Any) -> bool:
    """Whether a value of a JSON file can be a key."""
    return not isinstance(value, (list, dict))


def where(column: Sequence, value: Any) -> list[int]:
    """Rows that are a value."""
    return [row for row, entry in enumerate(column) if entry is value]


def short(value: Any, most: int = 60) -> str:
    """A value of a JSON file in a few characters."""
    text = value if isinstance(value, str) and value else 'none' if value is None else \
        json.dumps(value)
    return text if len(text) <= most else f'{text[:most]}...'
