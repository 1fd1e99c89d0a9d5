#!/usr/bin/env python
"""Draw how far instances are trusted: boxes by robust weight, masks of local knowledge, extremes.

Writes images.png, with the validation images whose instances are trusted most differently, and for
every class class_NAME.png with its most and its least trusted validation instances.
"""

import argparse
import os.path as osp
import re

from gkd.commands import positive, run
from gkd.errors import DataError
from gkd.frameworks import classes_of
from gkd.looking.cli import add_pair_options, read_pair_options
from gkd.looking.trained import TrainedPair, validation_images
from gkd.looking.trust import choose_images, draw_extremes, draw_images, judge
from gkd.progress import silence


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_pair_options(parser, 'trust')
    parser.add_argument('--images', nargs='+', metavar='FILE_NAME',
                        help='validation images to draw, as the annotations name them')
    parser.add_argument('--count', type=positive, default=3,
                        help='images to draw if none are named (default: 3)')
    parser.add_argument('--extremes', type=positive, default=8,
                        help='most and least trusted instances of a class (default: 8)')
    return parser.parse_args()


def main():
    args = parse_args()
    config, _, out = read_pair_options(args)
    with silence():  # pycocotools prints how it loads
        trained = TrainedPair(config, args.checkpoint, args.device)
        bank = trained.generate(out).bank
        images = validation_images(config, min_size=0)
    trust = judge(trained, bank, images)
    numbers = find_images(images, args.images) if args.images else \
        choose_images(trust, args.count)
    if numbers:
        draw_images(trained, bank, images, trust, numbers, osp.join(out, 'images.png'))
        print(f'images.png shows {", ".join(images[number].filename for number in numbers)}')
    paths = class_paths(out, classes_of(images[0].dataset))
    drawn = [path for label, path in enumerate(paths)
             if draw_extremes(images, trust, label, args.extremes, path)]
    print(f'{len(trust.weights)} instances: robust weight {trust.weights.mean():.3f} on average, '
          f'from {trust.weights.min():.3f} to {trust.weights.max():.3f}')
    print(f'wrote {len(drawn) + bool(numbers)} pictures to {out}')


def find_images(images, names):
    """Numbers of the images with these names."""
    numbers = {image.filename: number for number, image in enumerate(images)}
    missing = [name for name in names if name not in numbers]
    if missing:
        raise DataError(f'--images: the validation data have no image with boxes named '
                        f'{", ".join(missing)}; '
                        f'they have {", ".join(list(numbers)[:3])}, ...')
    return [numbers[name] for name in names]


def class_paths(folder, names):
    """Picture files of all classes; names may hold what no file name can."""
    plain = [re.sub(r'[^\w-]', '_', name) for name in names]
    return [osp.join(folder, f'class_{name}{f"_{label}" if plain.count(name) > 1 else ""}.png')
            for label, name in enumerate(plain)]


if __name__ == '__main__':
    run(main)
