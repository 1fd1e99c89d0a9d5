"""The data sets of the paper: COCO 2017 and PASCAL VOC 07+12, and what is known of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from gkd.datasets.annotations import Annotations
from gkd.datasets.archives import unpack
from gkd.datasets.coco_json import read_coco, write_coco
from gkd.datasets.inspection import Inspection, hashable
from gkd.datasets.voc import image_set, read_voc
from gkd.errors import DataError


@dataclass(frozen=True)
class Known:
    """Counts that a complete copy of a data set has.

    Attributes:
        images: Images.
        annotated: Images with annotations; None if not known.
        boxes: Annotations, ignored ones too; None if not known.
        counted: Annotations that are not ignored; None if not known.
    """

    images: int
    annotated: Optional[int] = None
    boxes: Optional[int] = None
    counted: Optional[int] = None


# https://cocodataset.org: of 118,287 and 5,000 images 1,021 and 48 have no annotation.
COCO_2017 = {'train2017': Known(images=118287, annotated=117266, boxes=860001),
             'val2017': Known(images=5000, annotated=4952, boxes=36781)}
COCO_SOURCE = 'http://images.cocodataset.org/'
# The tables of main image sets in the challenges' documentation: objects that are not difficult.
VOC = {('VOC2007', 'trainval'): Known(images=5011, counted=12608),
       ('VOC2012', 'trainval'): Known(images=11540, counted=27450),
       ('VOC2007', 'test'): Known(images=4952, counted=12032)}
VOC_SOURCE = 'http://host.robots.ox.ac.uk/pascal/VOC/'
VOC_ARCHIVES = {('VOC2007', 'trainval'): 'voc2007/VOCtrainval_06-Nov-2007.tar',
                ('VOC2012', 'trainval'): 'voc2012/VOCtrainval_11-May-2012.tar',
                ('VOC2007', 'test'): 'voc2007/VOCtest_06-Nov-2007.tar'}
# The COCO files that MMDetection's own configs with VOC in this format name.
VOC_AS_COCO = {'voc0712_trainval.json': [('VOC2007', 'trainval'), ('VOC2012', 'trainval')],
               'voc07_test.json': [('VOC2007', 'test')]}


def prepare_coco(root: str, tell: Callable[[str], None] = print) -> None:
    """Unpack COCO 2017 if need be, and verify it.

    Args:
        root: Folder that holds ``annotations/``, ``train2017/`` and ``val2017/``, or the archives
            that they come in.
        tell: Called with every line of the report.

    Raises:
        DataError: Something is missing, or its counts are not the known ones.
    """
    for part, known in COCO_2017.items():
        path = Path(root, 'annotations', f'instances_{part}.json')
        ensure([path], Path(root, 'annotations_trainval2017.zip'), root,
               f'{COCO_SOURCE}annotations/annotations_trainval2017.zip', tell)
        annotations = read_coco(str(path))
        images = [Path(root, part, image.file) for image in annotations.images.values()]
        verify(part, annotations, known, tell)
        ensure(images, Path(root, f'{part}.zip'), root, f'{COCO_SOURCE}zips/{part}.zip', tell)


def prepare_voc(root: str, tell: Callable[[str], None] = print) -> None:
    """Unpack PASCAL VOC 2007 and 2012 if need be, verify them, and write COCO files of them.

    Args:
        root: The ``VOCdevkit`` folder; the archives may lie in it or beside it.
        tell: Called with every line of the report.

    Raises:
        DataError: Something is missing, or its counts are not the known ones.
    """
    for (folder, name), known in VOC.items():
        source = VOC_ARCHIVES[folder, name]
        archive = Path(root, Path(source).name)
        if not archive.exists():
            archive = Path(root).absolute().parent / archive.name
        # The archives hold VOCdevkit/.
        where = Path(root).absolute().parent
        ensure([Path(root, folder, 'ImageSets', 'Main', f'{name}.txt')], archive, where,
               VOC_SOURCE + source, tell)
        files = [Path(root, folder, kind, f'{image}{ending}')
                 for image in image_set(root, folder, name)
                 for kind, ending in (('Annotations', '.xml'), ('JPEGImages', '.jpg'))]
        ensure(files, archive, where, VOC_SOURCE + source, tell)
        verify(f'{folder} {name}', read_voc(root, [(folder, name)]), known, tell)
    for file, sets in VOC_AS_COCO.items():
        path = Path(root, 'annotations', file)
        write_coco(read_voc(root, sets), str(path))
        tell(f'wrote {path}')


def ensure(files: list[Path], archive: Path, folder: str, url: str,
           tell: Callable[[str], None]) -> None:
    """See that files are there, and unpack their archive if they are not.

    Args:
        files: The files.
        archive: Their archive, which may be missing where nothing is to be unpacked.
        folder: Folder to unpack into.
        url: Where the archive comes from, for messages.
        tell: Called with what is done.

    Raises:
        DataError: Files are missing, and their archive is missing or does not hold them.
    """
    missing = absent(files)
    if missing and archive.exists():
        tell(f'{archive}: {unpack(str(archive), str(folder))} files unpacked')
        missing = absent(files)
    if missing:
        raise DataError(f'{len(missing)} of {len(files)} files are missing, first {missing[0]}. '
                        f'Get {url} and put it at {archive}; this command unpacks it.')


def absent(files: list[Path]) -> list[Path]:
    """Those files that do not exist; each folder is listed once, as network disks are slow."""
    listed = {folder: set(os.listdir(folder)) if folder.is_dir() else set()
              for folder in {file.parent for file in files}}
    return [file for file in files if file.name not in listed[file.parent]]


def verify(name: str, annotations: Annotations, known: Known,
           tell: Callable[[str], None]) -> None:
    """Report a data set and compare its counts with the known ones.

    Raises:
        DataError: A count differs.
    """
    report(name, annotations, tell)
    found = Known(images=len(annotations.images),
                  annotated=len(np.unique(annotations.image_ids)), boxes=len(annotations.boxes),
                  counted=int((~annotations.ignored).sum()))
    differences = [f'{getattr(found, count):,} instead of {expected:,} {meaning}'
                   for count, meaning in (('images', 'images'),
                                          ('annotated', 'images with annotations'),
                                          ('boxes', 'boxes'), ('counted', 'boxes that count'))
                   for expected in [getattr(known, count)]
                   if expected not in (None, getattr(found, count))]
    if differences:
        raise DataError(f'{name} is not complete, or not the official one: '
                        f'{", ".join(differences)}.')
    tell('  counts are the known ones')


def report(name: str, annotations: Annotations, tell: Callable[[str], None]) -> int:
    """Report what a data set holds and which of its boxes are broken.

    Args:
        name: Its name.
        annotations: Its annotations.
        tell: Called with every line.

    Returns:
        Number of broken boxes.
    """
    annotated = len(np.unique(annotations.image_ids))
    classes = len(np.unique(annotations.category_ids))
    tell(f'{name}: {len(annotations.images):,} images, {annotated:,} of them annotated, with '
         f'{len(annotations.boxes):,} boxes of {classes} of {len(annotations.categories)} '
         f'classes; {int(annotations.ignored.sum()):,} are crowds or difficult')
    ids = annotations.category_ids.tolist()
    tell(f'  boxes of each class: {counts(annotations.categories, ids)}')
    broken = {fault: rows for fault, rows in annotations.faults().items() if len(rows)}
    for fault, rows in broken.items():
        tell(f'  {len(rows):,} {fault}, first {annotations.describe(rows[0])}')
    if not broken:
        tell('  no broken box')
    return sum(map(len, broken.values()))


def counts(names: Mapping[Hashable, str], ids: Iterable[Hashable]) -> str:
    """How many boxes every class has, in words.

    Args:
        names: Names of the classes by id.
        ids: Class ids of the boxes; those of no class are passed over.

    Example:
        >>> counts({3: 'cat', 17: 'dog', 90: 'cow'}, [3, 17, 3, 5])
        'cat 2, dog 1, cow 0'
    """
    found = Counter(number for number in ids if hashable(number))
    return ', '.join(f'{name} {found[number]:,}' for number, name in names.items())


def report_inspection(name: str, inspection: Inspection, tell: Callable[[str], None]) -> int:
    """Report what a COCO file holds, what is wrong with it, and what training completes.

    Args:
        name: Its name.
        inspection: A look at it.
        tell: Called with every line.

    Returns:
        Number of entries with something wrong; what is completed does not count.
    """
    tell(f'{name}: {inspection.summary()}')
    names = {entry['id']: entry.get('name') for entry in inspection.content['categories']
             if hashable(entry.get('id'))}
    ids = inspection.column('annotations', 'category_id')
    tell(f'  boxes of each class: {counts(names, ids)}')
    for finding in inspection.findings:
        tell(f'  {finding}')
    wrong = [finding.count for finding in inspection.findings if not finding.completed]
    if not wrong:
        tell('  no broken box')
    return sum(wrong)
