"""All boxes of a data set as arrays, and what is wrong with them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

from gkd.errors import DataError

NOT_LISTED = 'of an image that is not listed'
UNKNOWN_CATEGORY = 'of a category that is not listed'
NO_BOX = 'not four finite numbers'


class Image(NamedTuple):
    """An image: its file below the folder of images, and its size in pixels."""

    file: str
    width: int
    height: int


@dataclass
class Annotations:
    """What detection needs of a data set's annotations, in 57 bytes per box.

    Attributes:
        images: Images by id, in the order of their file.
        categories: Names by id.
        ids: Id of every annotation, ``(n,)`` int64.
        image_ids: Image of every annotation, ``(n,)`` int64.
        category_ids: Category of every annotation, ``(n,)`` int64.
        boxes: ``(n, 4)`` float64 as ``x, y, width, height`` in pixels; NaN for what is no box.
        ignored: ``(n,)`` bool: crowds and the like, which neither train nor count in evaluations.
    """

    images: dict[int, Image]
    categories: dict[int, str]
    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray

    def faults(self) -> dict[str, np.ndarray]:
        """What is wrong, by name: positions of the annotations, ``(k,)`` int64.

        An annotation is counted under the first name that fits.
        """
        # Images that are not listed have no size.
        sizes = np.array([self.images.get(number, (None, np.nan, np.nan))[1:]
                          for number in self.image_ids.tolist()], float).reshape(-1, 2)
        masks = {
            NOT_LISTED: ~np.isin(self.image_ids, list(self.images)),
            UNKNOWN_CATEGORY: ~np.isin(self.category_ids, list(self.categories)),
            'with the id of another': ~_first_of_each(self.ids),
            NO_BOX: ~np.isfinite(self.boxes).all(axis=1),
            **box_faults(self.boxes, sizes),
        }
        counted = np.zeros(len(self.boxes), bool)
        found = {}
        for name, mask in masks.items():
            found[name] = np.flatnonzero(mask & ~counted)
            counted |= mask
        return found

    def require_sound(self) -> None:
        """Raise DataError if an annotation cannot be written to another format."""
        faults = self.faults()
        for name in (NOT_LISTED, UNKNOWN_CATEGORY, NO_BOX):
            if len(faults[name]):
                raise DataError(f'{self.describe(faults[name][0])}: {name}; so are '
                                f'{len(faults[name]) - 1} more.')

    def describe(self, position: int) -> str:
        """An annotation in words."""
        number = int(self.image_ids[position])
        file = self.images[number].file if number in self.images else 'not listed'
        box = ', '.join(f'{value:g}' for value in self.boxes[position])
        return f'annotation {self.ids[position]} of image {number} ({file}): {box}'


def box_faults(boxes: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Where boxes lie badly, by name: a mask ``(n,)``; one box may have several faults.

    Args:
        boxes: ``(n, 4)`` float64 as ``x, y, width, height`` in pixels.
        sizes: Width and height of the image of every box, ``(n, 2)``.

    Example:
        >>> faults = box_faults(np.array([[2.0, 3, 0, 9]]), np.array([[64.0, 48]]))
        >>> [name for name, mask in faults.items() if mask.any()]
        ['narrower or lower than a pixel', 'wholly outside of the image']
    """
    low, size = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid='ignore', over='ignore'):
        inside = np.minimum(low + size, sizes) - np.maximum(low, 0)
        return {
            'narrower or lower than a pixel': (size < 1).any(axis=1),
            'wholly outside of the image': (inside <= 0).any(axis=1),
            'over the border of the image by more than a pixel':
                ((low < -1) | (low + size > sizes + 1)).any(axis=1),
        }


class Collector:
    """Gather annotations one by one without keeping an object for each."""

    def __init__(self):
        self._columns = {name: array('q') for name in ('ids', 'image_ids', 'category_ids')}
        self._boxes, self._ignored = array('d'), array('b')

    def __len__(self) -> int:
        return len(self._ignored)

    def add(self, image_id: int, category_id: int, box: Sequence[float], ignored: bool,
            number: Optional[int] = None) -> None:
        """Add an annotation.

        Args:
            image_id: Its image.
            category_id: Its category.
            box: ``x, y, width, height`` in pixels; anything else becomes NaN.
            ignored: Whether it neither trains nor counts.
            number: Its id; by default they are numbered from 1.
        """
        self._columns['ids'].append(len(self) + 1 if number is None else number)
        self._columns['image_ids'].append(image_id)
        self._columns['category_ids'].append(category_id)
        self._ignored.append(bool(ignored))
        numeric = isinstance(box, (list, tuple)) and len(box) == 4 and all(
            isinstance(value, (int, float)) for value in box)
        self._boxes.extend(box if numeric else [np.nan] * 4)

    def annotations(self, images: dict[int, Image], categories: dict[int, str]) -> Annotations:
        """All that was added."""
        columns = {name: np.array(column, np.int64) for name, column in self._columns.items()}
        return Annotations(images, categories, boxes=np.array(self._boxes).reshape(-1, 4),
                           ignored=np.array(self._ignored, bool), **columns)


def by_id(entries: Iterable[tuple[int, object]], source: str) -> dict:
    """A dict of pairs.

    Raises:
        DataError: An id comes twice.
    """
    found = {}
    for number, entry in entries:
        if number in found:
            raise DataError(f'{source}: id {number} is given to {found[number]} and {entry}.')
        found[number] = entry
    return found


def _first_of_each(values: np.ndarray) -> np.ndarray:
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first
