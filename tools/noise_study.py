#!/usr/bin/env python
"""Corrupt instances by degrees and see whether the trust in them falls.

Takes the teacher and the student of a distillation config, chooses their prototypes, and blurs,
moves, occludes or scales down one validation instance at a time. Prints the figures and writes
noise_study.png, noise_study.md, noise_study.csv and examples.png.
"""

import argparse
import os.path as osp
import sys

from gkd.files import write_atomically

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import positive, run
from gkd.looking.cli import add_pair_options, read_pair_options
from gkd.looking.trained import TrainedPair, validation_images
from gkd.progress import silence
from studies.noise_study import (
    choose_instances,
    draw_examples,
    draw_study,
    report,
    run_study,
    write_csv,
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_pair_options(parser, 'noise_study')
    parser.add_argument('--instances', type=positive, default=200,
                        help='instances, chosen at random (default: 200)')
    parser.add_argument('--degrees', type=positive, default=4,
                        help='steps between no and the most corruption (default: 4)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all choices (default: 0)')
    return parser.parse_args()


def main():
    args = parse_args()
    config, name, out = read_pair_options(args)
    with silence():  # pycocotools prints how it loads
        trained = TrainedPair(config, args.checkpoint, args.device)
        bank = trained.generate(out).bank
        images = validation_images(config, trained.generation.min_size)
    images = choose_instances(images, args.instances, args.seed)
    degrees = [(step + 1) / args.degrees for step in range(args.degrees)]
    study = run_study(trained, bank, images, degrees, args.seed, trained.generation.batch_size)
    text = report(study)
    print(text)
    write_atomically(osp.join(out, 'noise_study.md'), f'{text}\n')
    write_csv(study, osp.join(out, 'noise_study.csv'))
    draw_study(study, f'{name}: {len(study.groups)} instances', osp.join(out, 'noise_study.png'))
    draw_examples(images[len(images) // 2], degrees, args.seed, osp.join(out, 'examples.png'))
    print(f'\nwrote {out}/noise_study.png, noise_study.md, noise_study.csv, examples.png')


if __name__ == '__main__':
    run(main)
