"""COCO's JSON: ``images``, ``annotations`` and ``categories``."""

from __future__ import annotations

import json

import numpy as np

from gkd.datasets.annotations import Annotations, Collector, Image, by_id
from gkd.datasets.inspection import Inspection
from gkd.datasets.json_stream import read_items, text_written_whole, write_items
from gkd.errors import DataError
from gkd.frameworks import logger
from gkd.repository import tool

MOST = 3  # faults that an error lists
_said: set[str] = set()


def read_coco(path: str) -> Annotations:
    """Read a COCO file of any size; polygons and text are passed over, not kept.

    Args:
        path: COCO JSON.

    Raises:
        DataError: It is no COCO file.
    """
    try:
        images = by_id(((image['id'], Image(image['file_name'], image['width'], image['height']))
                        for image in read_items(path, 'images')), f'{path}, images')
        categories = by_id(((category['id'], category['name'])
                            for category in read_items(path, 'categories')),
                           f'{path}, categories')
    except (KeyError, TypeError) as error:
        raise unusable_entry(path, 'an image or a category', error) from None
    if not images or not categories:
        raise DataError(f'{path} is no COCO file: "images" or "categories" are missing or empty.')
    collector = Collector()
    try:
        for annotation in read_items(path, 'annotations'):
            collector.add(annotation['image_id'], annotation['category_id'],
                          annotation.get('bbox'), annotation.get('iscrowd', 0), annotation['id'])
    except (KeyError, TypeError) as error:
        raise unusable_entry(path, f'annotation {len(collector) + 1}', error) from None
    return collector.annotations(images, categories)


def unusable_entry(path: str, entry: str, error: Exception) -> DataError:
    """The error of an entry that is missing something, or has something of another kind."""
    if isinstance(error, KeyError):
        return DataError(f'{path}: {entry} lacks {error}.')
    return DataError(f'{path}: {entry} cannot be used ({error}). Entries are objects, and their '
                     f'ids must be integers here. What is wrong in all of it: '
                     f'python {tool("datasets.py")} check {path}')


def inspect_coco(path: str) -> Inspection:
    """Read a whole COCO file, as trainings do, and inspect all of it.

    Args:
        path: COCO JSON.

    Raises:
        DataError: It cannot be read, is no JSON, or has not the form of a COCO file.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f'{path} is no complete JSON file: {error}') from None
    try:
        return Inspection(content)
    except DataError as error:
        raise DataError(f'{path} is no COCO file: {error}') from None


def load_coco(path: str) -> Inspection:
    """A COCO file that can be trained on, completed where that is harmless.

    What was completed or is left out is said once a file, in MMDetection's log.

    Args:
        path: COCO JSON.

    Raises:
        DataError: An entry cannot be used; with the file, the entry and its value.
    """
    inspection = inspect_coco(path)
    faults = inspection.faults
    if faults:
        raise DataError(f'{path}: {"; ".join(map(str, faults[:MOST]))}. All of it: '
                        f'python {tool("datasets.py")} check {path}')
    for finding in inspection.findings:
        text = f'{path}: {finding}.'
        if text not in _said:
            _said.add(text)
            logger().warning(text)
    return inspection


def write_coco(annotations: Annotations, path: str) -> None:
    """Write a COCO file.

    Areas are those of the boxes. What is ignored becomes a crowd, the only kind of instance that
    both training and COCO's evaluation pass over.

    Args:
        annotations: The annotations.
        path: The file; it appears whole or not at all.

    Raises:
        DataError: An annotation has no image, no category or no box.
    """
    annotations.require_sound()
    columns = zip(annotations.ids.tolist(), annotations.image_ids.tolist(),
                  annotations.category_ids.tolist(), map(np.ndarray.tolist, annotations.boxes),
                  annotations.ignored.tolist())
    with text_written_whole(path) as file:
        file.write('{"images": ')
        write_items(file, (dict(id=number, file_name=image.file, width=image.width,
                                height=image.height)
                           for number, image in annotations.images.items()))
        file.write(',\n"annotations": ')
        write_items(file, (
            dict(id=number, image_id=image, category_id=category,
                 bbox=[shortest(value) for value in box], area=shortest(box[2] * box[3]),
                 iscrowd=int(ignored)) for number, image, category, box, ignored in columns))
        categories = [dict(id=number, name=name)
                      for number, name in annotations.categories.items()]
        file.write(f',\n"categories": {json.dumps(categories)}}}\n')


def shortest(value: float) -> float:
    """A number of pixels without noise of rounding, to a thousandth.

    Example:
        >>> shortest(0.1 + 0.2), shortest(3.0)
        (0.3, 3)
    """
    value = round(value, 3)
    return int(value) if value == int(value) else value
