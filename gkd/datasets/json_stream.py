"""Reading JSON files of any size item by item, and writing files whole or not at all."""

from __future__ import annotations

import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import ijson

from gkd.errors import DataError
from gkd.files import written_whole


def read_items(path: str, key: str) -> Iterator[Any]:
    """Items of one list of a JSON object, such as ``annotations`` of a COCO file, one at a time.

    Args:
        path: The JSON file.
        key: Key of the list.

    Raises:
        DataError: The file is missing or no JSON.
    """
    return _read(path, lambda file: ijson.items(file, f'{key}.item', use_float=True))


def read_pairs(path: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON object, one at a time.

    Args:
        path: The JSON file.

    Raises:
        DataError: The file is missing or no JSON.
    """
    return _read(path, lambda file: ijson.kvitems(file, '', use_float=True))


def _read(path, parse):
    try:
        with open(path, 'rb') as file:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:  # Windows puts it in front
                file.seek(0)
            yield from parse(file)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from None
    except ijson.JSONError as error:
        reason = str(error).split('\n')[0].strip()
        raise DataError(f'{path} is no complete JSON file: {reason}') from None


@contextmanager
def text_written_whole(path: str) -> Iterator[IO[str]]:
    """Open a text file for writing that takes its name once it is complete.

    Args:
        path: The file; missing folders are made.

    Raises:
        StorageError: The disk is full, or the place cannot be written to.
    """
    with written_whole(path) as file:
        text = io.TextIOWrapper(file, encoding='utf-8')
        try:
            yield text
        finally:
            text.detach()  # writes the rest; else it would close the file


def write_items(file: IO[str], items: Iterable[Any]) -> None:
    """Write a JSON list item by item.

    Args:
        file: Open for writing.
        items: What JSON can hold.
    """
    _write_joined(file, '[', map(json.dumps, items), ']')


def write_pairs(file: IO[str], pairs: Iterable[tuple[str, Any]]) -> None:
    """Write a JSON object pair by pair.

    Args:
        file: Open for writing.
        pairs: Keys and values.
    """
    _write_joined(file, '{', (f'{json.dumps(key)}: {json.dumps(value)}' for key, value in pairs),
                  '}')


def _write_joined(file, start, texts, end):
    file.write(start)
    for number, text in enumerate(texts):
        file.write(f',\n{text}' if number else f'\n{text}')
    file.write(end)
