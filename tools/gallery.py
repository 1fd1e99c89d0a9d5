#!/usr/bin/env python
"""Show prototypes: one offline page with their crops, what they explain, and both feature spaces.

Chooses the prototypes of a distillation config's student from the training data, as the training
does at an epoch's start.
"""

import argparse
import os.path as osp

import torch

from gkd.apis import load_config
from gkd.apis.cli import DictAction, add_trust_option, positive, run, silence
from gkd.compat.checkpoint import trust_checkpoints
from gkd.reporting.gallery import summary, write_gallery
from gkd.reporting.trained import TrainedPair


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='distillation config')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of its training (default: the '
                        'student that the config starts from)')
    parser.add_argument('--instances', type=positive, default=1000,
                        help='instances on the maps (default: 1000)')
    parser.add_argument('--out', help='folder to write to (default: work_dirs/gallery/CONFIG)')
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
    out = args.out or osp.join('work_dirs', 'gallery', name)
    with silence():  # pycocotools tells how it loads
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
