"""What must hold of a data set before a training starts: its class names, images and boxes.

Both MMDetections number classes and leave out images alike; how they are queried differs.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gkd.datasets.inspection import Finding, mask_faults
from gkd.datasets.official import absent
from gkd.errors import DataError, shorten
from gkd.frameworks import CLASSES_SETTING, IMAGES_SETTING, logger

UNNEEDED = 'A detector that is not trained on them needs a pipeline that does not load them.'


def check_class_names(classes: Any, key: str) -> None:
    """Raise DataError unless the classes that a config names are a list of different names.

    Args:
        classes: The setting; None for the classes of the data set's type.
        key: Its place in the config, for messages.
    """
    if classes is None:
        return
    if isinstance(classes, str):  # a file with a name in every line
        if '://' not in classes and not osp.isfile(classes):
            raise DataError(f'{key} = {classes!r} is text, which names a file with a class in '
                            f'every line, and there is no such file. Write a list of names: '
                            f'classes = [{classes!r}]')
    elif not isinstance(classes, (list, tuple)) or not classes or not all(
            isinstance(name, str) for name in classes):
        raise DataError(f'{key} = {classes!r}: must be a list of names.')
    elif len(set(classes)) < len(classes):
        raise DataError(f'{key} = {shorten(classes)}: a class is named twice.')


def check_same_classes(classes: Sequence[str], key: str, others: Sequence[str],
                       other_key: str) -> None:
    """Raise DataError if two data sets of a training number their classes differently.

    Example:
        >>> check_same_classes(('bolt', 'nut'), 'data.val', ['bolt', 'nut'], 'data.train')
        >>> check_same_classes(('bolt', ), 'data.val', ('nut', 'bolt'), 'data.train')
        Traceback (most recent call last):
        ...
        gkd.errors.DataError: data.val has other classes than data.train: bolt, and there nut, ...
    """
    if list(classes) != list(others):
        raise DataError(f'{key} has other classes than {other_key}: {shorten(classes)}, and there '
                        f'{shorten(others)}; class {first_difference(classes, others)} is the '
                        f'first that differs. A label would stand for one class here and for '
                        f'another there: give both the same `{CLASSES_SETTING}`.')


def first_difference(values: Sequence, others: Sequence) -> int:
    """Index of the first value that two lists, which are not equal, do not share.

    Example:
        >>> first_difference('bolt', 'bold'), first_difference('nut', 'nuts')
        (3, 3)
    """
    pairs = enumerate(zip(values, others))
    return next((index for index, (value, other) in pairs if value != other),
                min(len(values), len(others)))


def check_categories(classes: Sequence[str], named: Sequence[str], source: str, key: str) -> None:
    """Raise DataError if a COCO file lacks classes of the config, or has them in another order.

    MMDetection numbers classes in the order of the file's categories. It would skip a class that
    is missing, and number all classes after it wrongly. If the order differs from the config's,
    the same number means different classes in different data sets, or for the teacher.

    Args:
        classes: Names of the data set's classes.
        named: Names of the file's categories.
        source: The file.
        key: Place of the data set in the config, for messages.
    """
    missing = [name for name in classes if name not in named]
    if missing:
        raise DataError(
            f'{key}: {len(missing)} of {len(classes)} classes are no categories of {source}: '
            f'{shorten(missing)}. It has {shorten(named)}; set `{CLASSES_SETTING}` of every data '
            f'set to the names to detect.')
    twice = sorted({name for name in classes if list(named).count(name) > 1})
    if twice:
        raise DataError(f'{key}: {source} has several categories called {shorten(twice)}; give '
                        f'each its own name, or all boxes one of them.')
    in_file = [name for name in named if name in classes]
    if in_file != list(classes):
        raise DataError(
            f'{key}: `{CLASSES_SETTING}` are {shorten(classes)}, but {source} lists them as '
            f'{shorten(in_file)}, and MMDetection numbers them in the order of the file. Give '
            f'`{CLASSES_SETTING}` of every data set in that order; where files differ in it, put '
            f'their "categories" into one order (ids may stay as they are).')


def no_image(source: str, classes: Sequence[str], findings: Iterable[Finding], key: str,
             ) -> DataError:
    """The error of a data set that has no image to train on.

    Args:
        source: Its annotation file.
        classes: Names of its classes.
        findings: What an inspection of the file has found.
        key: Place of the data set in the config.
    """
    return DataError(f'{key}: no image of {source} can be used; images without boxes of the '
                     f'classes {shorten(classes)} are left out of training{left_out(findings)}.')


def no_box(source: str, findings: Iterable[Finding], key: str) -> DataError:
    """The error of a data set that has images, but no box to train on; arguments as above."""
    return DataError(f'{key}: no box of {source} can be trained on{left_out(findings)}.')


def left_out(findings: Iterable[Finding]) -> str:
    """Why boxes of a COCO file are not trained on, for messages; empty if nothing is known."""
    return ''.join(f'; {finding}' for finding in findings if not finding.completed)


def check_files_exist(paths: Sequence[str], source: str, key: str, what: str = 'images',
                      setting: str = IMAGES_SETTING) -> None:
    """Raise DataError if a file is missing that belongs to an image.

    Args:
        paths: All such files of a data set that are on a disk.
        source: Its annotation file.
        key: Place of the data set in the config, for messages.
        what: What the files are.
        setting: Setting of the data set that names their folder.
    """
    missing = absent(list(map(Path, paths)))
    if missing:
        advice = f'Set `{setting}` to their folder.' if len(missing) == len(paths) else (
            'Get them, or remove them from the annotations.')
        raise DataError(f'{key}: {len(missing)} of {len(paths)} {what} of {source} are missing, '
                        f'first {missing[0]}. {advice}')


def check_masks(annotations: Iterable[dict], source: str, key: str,
                only_polygons: bool = False) -> None:
    """Raise DataError if annotations have no masks, and a pipeline loads masks.

    Args:
        annotations: Those of a COCO file that are trained on.
        source: The file.
        key: Place of the data set in the config, for messages.
        only_polygons: Whether the pipeline keeps polygons as they are and takes nothing else.
    """
    annotations = list(annotations)
    faults = mask_faults(annotations)
    if faults:
        raise DataError(f'{key}: {source}: the pipeline loads masks, but {faults[0]}; so have '
                        f'{len(faults) - 1} more. A mask is a list of polygons [x1, y1, x2, y2, '
                        f'x3, y3, ...] or a run-length code. {UNNEEDED}')
    codes = [entry['id'] for entry in annotations if only_polygons
             and isinstance(entry['segmentation'], dict) and not entry.get('iscrowd')]
    if codes:
        raise DataError(f'{key}: {source}: the pipeline loads masks with poly2mask=False, which '
                        f'takes polygons only, but annotation {codes[0]} has a run-length code; '
                        f'so have {len(codes) - 1} more. Set poly2mask=True in LoadAnnotations.')


def without(what: str, dataset: Any, key: str) -> DataError:
    """The error of a pipeline that loads what annotations of a format do not hold.

    Args:
        what: What is loaded.
        dataset: The data set.
        key: Its place in the config.
    """
    kind = 'CocoPanopticDataset' if 'panoptic' in what else 'CocoDataset'
    return DataError(f'{key}: the pipeline loads {what}, but a {type(dataset).__name__} gives '
                     f'none of {shorten([dataset.ann_file])}. {kind} does, of a file in its '
                     f'format. {UNNEEDED}')


def not_named(what: str, setting: str, holds: str) -> DataError:
    """The error of a pipeline that loads what no setting of the data set names.

    Args:
        what: What is loaded.
        setting: The setting, with its place in the config.
        holds: What the setting names.
    """
    return DataError(f'{setting} is not set, and the pipeline loads {what}: set it to {holds}. '
                     f'{UNNEEDED}')


def check_instances(boxes: Sequence, labels: Sequence[int], num_classes: int, image: str,
                    source: str, key: str) -> None:
    """Raise DataError if an image's boxes are not four finite numbers, or its labels no classes.

    For formats whose files were not inspected whole.

    Args:
        boxes: ``(n, 4)`` in pixels.
        labels: ``(n,)``.
        num_classes: Classes of the data set.
        image: The image's file.
        source: The annotation file.
        key: Place of the data set in the config, for messages.
    """
    try:
        numbers = np.asarray(boxes, np.float64)
        sound = ((numbers.shape == (len(labels), 4) or not len(labels)) and
                 np.isfinite(numbers).all() and set(labels) <= set(range(num_classes)))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise unusable(image, source, f'bboxes {shorten(boxes, 2)}, labels {shorten(labels)}', key)


def warn_of_flat_boxes(boxes: Sequence[tuple[dict, str, Sequence[float]]], source: str) -> None:
    """Warn of boxes without area that are trained on: a loss of boxes may be infinite for them.

    For formats whose files were not inspected whole. Boxes are cut at the border of the image.

    Args:
        boxes: What is known of an image, such as its ``width``; its file; and a box ``(x1, y1, x2,
            y2)`` in pixels that is trained on.
        source: The annotation file.
    """
    flat = [(image, box) for info, image, box in boxes
            if min(box[2], info.get('width', np.inf)) <= max(box[0], 0)
            or min(box[3], info.get('height', np.inf)) <= max(box[1], 0)]
    if flat:
        image, box = flat[0]
        logger().warning(f'{source}: {len(flat)} boxes without area in their image, first '
                         f'{list(box)} of {image}: losses may be infinite. Mend or remove them.')


def unusable(image: str, source: str, problem: str, key: str) -> DataError:
    """The error of an image whose annotations cannot be read.

    Args:
        image: The image's file.
        source: The annotation file.
        problem: What is wrong, in words.
        key: Place of the data set in the config.
    """
    return DataError(f'{key}: the annotations of {image} in {source} cannot be used ({problem}).')
