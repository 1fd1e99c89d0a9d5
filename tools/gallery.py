#!/usr/bin/env python
"""Show prototypes: one offline page with their crops, what they explain, and both feature spaces.

Chooses the prototypes of a distillation config's student from the training data, as the training
does at an epoch's start.
"""

import argparse
import os.path as osp

from gkd.commands import positive, run
from gkd.looking.cli import add_pair_options, read_pair_options
from gkd.looking.gallery import summary, write_gallery
from gkd.looking.trained import TrainedPair
from gkd.progress import silence


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_pair_options(parser, 'gallery')
    parser.add_argument('--instances', type=positive, default=1000,
                        help='instances on the maps (default: 1000)')
    return parser.parse_args()


def main():
    args = parse_args()
    config, name, out = read_pair_options(args)
    with silence():  # pycocotools prints how it loads
        trained = TrainedPair(config, args.checkpoint, args.device)
        basis = trained.generate(out)
    alpha = trained.generation.pursuit['alpha']
    path = osp.join(out, 'gallery.html')
    write_gallery(basis, alpha, f'Prototypes: {name}', path, args.instances)
    print('| level | explained, teacher | explained, student | agreement of both spaces |\n'
          '| --- | ---: | ---: | ---: |')
    for level, row in enumerate(summary(basis, alpha)):
        print(f'| {level} | {100 * row["teacher"]:.1f} % | {100 * row["student"]:.1f} % '
              f'| {row["agreement"]:.2f} |')
    print(f'\nwrote {path}')


if __name__ == '__main__':
    run(main)
