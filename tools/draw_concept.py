#!/usr/bin/env python
"""Draw the figures that explain the method, of a distillation config's teacher and student.

Writes spaces.jpg, with instances and prototypes in both feature spaces; coordinates.jpg, with the
validation instances on whose coordinates both agree most and least; and weights.jpg, with the
robust weights in an image and the mask of local knowledge.
"""

import argparse
import os.path as osp

import torch

from gkd.apis import load_config
from gkd.apis.cli import DictAction, add_trust_option, positive, run, silence
from gkd.compat.checkpoint import trust_checkpoints
from gkd.reporting.concept import draw_coordinates, draw_spaces, locate, same_prototypes
from gkd.reporting.trained import TrainedPair, validation_images
from gkd.reporting.trust import choose_images, draw_images, judge

CONFIG = 'configs/quickstart/gkd_retinanet_efficientnet-lite0_r18-w8_fpn_tree-crowns.py'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', default=CONFIG,
                        help='distillation config (default: RetinaNet of the quickstart)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of its training (default: the '
                        'student that the config starts from)')
    parser.add_argument('--after', metavar='CHECKPOINT', help='show in coordinates.jpg where this '
                        'later student of the same kind sees the instances, too')
    parser.add_argument('--label', type=int, default=0, help='class to draw (default: 0, the '
                        'first)')
    parser.add_argument('--level', type=int, default=0, help='pyramid level to draw both spaces '
                        'of (default: 0, the finest)')
    parser.add_argument('--instances', type=positive, default=2,
                        help='instances of agreement and of disagreement (default: 2)')
    parser.add_argument('--out', help='folder to write to (default: work_dirs/concept/CONFIG)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='replace settings of the config')
    add_trust_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.trust_checkpoint:
        trust_checkpoints()
    config = load_config(args.config, args.cfg_options)
    name = osp.splitext(osp.basename(args.config))[0]
    out = args.out or osp.join('work_dirs', 'concept', name)
    cache = osp.join('work_dirs', 'concept', name)
    with silence():  # pycocotools tells how it loads
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
