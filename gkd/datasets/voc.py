"""PASCAL VOC's XML annotations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from gkd.datasets.annotations import Annotations, Collector, Image
from gkd.errors import DataError
from gkd.frameworks import VOC_CLASSES


def read_voc(devkit: str, sets: Iterable[tuple[str, str]]) -> Annotations:
    """Read image sets of a VOCdevkit, with the boxes that MMDetection's ``VOCDataset`` reads.

    Corners count from 1 in VOC and from 0 here. Difficult objects are ignored.

    Args:
        devkit: Folder with ``VOC2007/`` and the like.
        sets: Folder and image set, such as ``('VOC2007', 'trainval')``.

    Raises:
        DataError: A file is missing or broken.
    """
    categories = dict(enumerate(VOC_CLASSES, start=1))
    numbers = {name: number for number, name in categories.items()}
    images, collector = {}, Collector()
    for folder, name in sets:
        for image in image_set(devkit, folder, name):
            path = Path(devkit, folder, 'Annotations', f'{image}.xml')
            try:
                root = ElementTree.parse(path).getroot()
                width, height = (int(root.find(f'size/{side}').text)
                                 for side in ('width', 'height'))
                images[len(images) + 1] = Image(f'{folder}/JPEGImages/{image}.jpg', width, height)
                for instance in root.iter('object'):
                    x1, y1, x2, y2 = (int(float(instance.find(f'bndbox/{corner}').text))
                                      for corner in ('xmin', 'ymin', 'xmax', 'ymax'))
                    difficult = instance.find('difficult')
                    collector.add(len(images), numbers[instance.find('name').text],
                                  [x1 - 1, y1 - 1, x2 - x1, y2 - y1],
                                  difficult is not None and difficult.text == '1')
            except OSError as error:
                raise DataError(f'{path}: {error.strerror}') from None
            except (ElementTree.ParseError, AttributeError, ValueError, KeyError) as error:
                raise DataError(f'{path} is no annotation of VOC: {type(error).__name__}: '
                                f'{error}') from None
    return collector.annotations(images, categories)


def image_set(devkit: str, folder: str, name: str) -> list[str]:
    """Names of the images of a set, without their ending.

    Raises:
        DataError: The set is not there.
    """
    path = Path(devkit, folder, 'ImageSets', 'Main', f'{name}.txt')
    try:
        return path.read_text().split()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from None
