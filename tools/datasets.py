#!/usr/bin/env python
"""Prepare and verify COCO and PASCAL VOC, check annotations of your own, convert data lists."""

import argparse
import sys
from pathlib import Path

from gkd.commands import run
from gkd.datasets.coco_json import inspect_coco, read_coco, write_coco
from gkd.datasets.images import image_faults
from gkd.datasets.official import (
    absent,
    prepare_coco,
    prepare_voc,
    report,
    report_inspection,
)
from gkd.datasets.records import read_classes, read_records, write_records

MOST = 20  # images that are named
CLASSES = Path(__file__).parent.parent / 'datalists' / 'classes_config.json'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name, help, *positional):
        command = commands.add_parser(name, help=help, description=help)
        for argument, meaning in positional:
            command.add_argument(argument, help=meaning)
        return command

    coco = add('coco', 'unpack COCO 2017 if need be, and verify it')
    coco.add_argument('--root', default='data/coco', help='folder of annotations/, train2017/ and '
                      'val2017/, or of their archives (default: %(default)s)')
    voc = add('voc', 'unpack PASCAL VOC 2007 and 2012 if need be, verify them, and write COCO '
                     'files of them')
    voc.add_argument('--root', default='data/VOCdevkit', help='folder of VOC2007/ and VOC2012/; '
                     'their archives may lie in it or beside it (default: %(default)s)')
    check = add('check', 'count, and report what is wrong; ends with status 1 if anything is',
                ('annotations', 'COCO JSON'))
    check.add_argument('--images', help='folder of the images: see that all are there, open them, '
                       'and compare their sizes')
    check.add_argument('--records', action='store_true',
                       help='the file is a list with one record an image')
    to_records = add('to-records', 'convert COCO JSON to a list with one record an image',
                     ('coco', 'COCO JSON'), ('records', 'file to write'))
    to_coco = add('to-coco', 'convert a list with one record an image to COCO JSON',
                  ('records', 'the list'), ('coco', 'file to write'))
    for command in (check, to_records, to_coco):
        command.add_argument('--classes', default=str(CLASSES), help='class names, of records '
                             'only: {"classes": [...]} (default: those of COCO)')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.command == 'coco':
        prepare_coco(args.root)
    elif args.command == 'voc':
        prepare_voc(args.root)
    elif args.command == 'to-records':
        annotations = read_coco(args.coco)
        write_records(annotations, args.records, read_classes(args.classes))
        report(args.records, annotations, print)
    elif args.command == 'to-coco':
        annotations = read_records(args.records, read_classes(args.classes))
        write_coco(annotations, args.coco)
        report(args.coco, annotations, print)
    else:
        sys.exit(check(args))


def check(args):
    """Exit status: whether anything is wrong."""
    if args.records:
        annotations = read_records(args.annotations, read_classes(args.classes))
        faults = report(args.annotations, annotations, print)
        images = [(image.file, image.width, image.height)
                  for image in annotations.images.values()]
    else:
        inspection = inspect_coco(args.annotations)
        faults = report_inspection(args.annotations, inspection, print)
        images = [(image['file_name'], image.get('width'), image.get('height'))
                  for image in inspection.images if isinstance(image.get('file_name'), str)]
    if args.images is not None:
        files = [Path(args.images, name) for name, *_ in images]
        missing = set(absent(files))
        print(f'  {len(missing):,} of {len(files):,} images are missing'
              + (f', first {min(missing)}' if missing else ''))
        broken = image_faults([(str(file), width, height)
                               for file, (_, width, height) in zip(files, images)
                               if file not in missing])
        for fault in broken[:MOST]:
            print(f'  {fault}')
        print(f'  {len(broken):,} of {len(files):,} images are damaged or of another size')
        faults += len(missing) + len(broken)
    return int(faults > 0)


if __name__ == '__main__':
    run(main)
