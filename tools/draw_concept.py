#!/usr/bin/env python
"""Draw the figures that explain the method, of a distillation config's teacher and student.

Writes spaces.jpg, with instances and prototypes in both feature spaces; coordinates.jpg, with the
validation instances on whose coordinates both agree most and least; and weights.jpg, with the
robust weights in an image and the mask of local knowledge.
"""

import argparse
import os.path as osp
import sys

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import positive, run
from gkd.looking.cli import add_pair_options, read_pair_options
from gkd.looking.trained import TrainedPair, validation_images
from gkd.looking.trust import choose_images, draw_images, judge
from gkd.progress import silence
from studies.concept import draw_coordinates, draw_spaces, locate, same_prototypes

CONFIG = 'configs/quickstart/gkd_retinanet_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_pair_options(parser, 'concept', CONFIG)
    parser.add_argument('--after', metavar='CHECKPOINT', help='show in coordinates.jpg where this '
                        'later student of the same kind sees the instances, too')
    parser.add_argument('--label', type=int, default=0, help='class to draw (default: 0, the '
                        'first)')
    parser.add_argument('--level', type=int, default=0, help='pyramid level to draw both spaces '
                        'of (default: 0, the finest)')
    parser.add_argument('--instances', type=positive, default=2,
                        help='instances of agreement and of disagreement (default: 2)')
    return parser.parse_args()


def main():
    args = parse_args()
    config, name, out = read_pair_options(args)
    cache = osp.join('work_dirs', 'concept', name)
    with silence():  # pycocotools prints how it loads
        trained = TrainedPair(config, args.checkpoint, args.device)
        basis = trained.generate(cache)
        images = validation_images(config, min_size=0)
    draw_spaces(basis, args.label, args.level, osp.join(out, 'spaces.jpg'))
    located = locate(trained, basis.bank, images, args.label)
    print(f'{len(located.paths)} instances: coordinates of teacher and student differ by '
          f'{located.discrepancies().mean():.3f} on average')
    after = None
    if args.after:
        with silence():
            later = TrainedPair(config, args.after, args.device)
            bank = same_prototypes(basis, later.generate(cache))
        after = locate(later, bank, images, args.label)
        print(f'those of teacher and {args.after} by {after.discrepancies().mean():.3f}')
    draw_coordinates(located, args.instances, osp.join(out, 'coordinates.jpg'), after)
    trust = judge(trained, basis.bank, images)
    draw_images(trained, basis.bank, images, trust, choose_images(trust, 1),
                osp.join(out, 'weights.jpg'))
    print(f'wrote 3 pictures to {out}')


if __name__ == '__main__':
    run(main)
