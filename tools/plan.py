#!/usr/bin/env python
"""Estimate what a training needs: parameters, FLOPs, memory of a GPU, disk space.

Neither data nor checkpoints nor a GPU are needed. The step is run on the CPU with untrained
weights, on two sizes of small images, and scaled to the pixels of the training's; with SSD, whose
images have one size, on few images, and scaled to their number.
"""

import argparse

from gkd.commands import positive, run
from gkd.commands.settings import add_settings_option
from gkd.errors import DataError
from gkd.planning.door import images_per_pass, load_config, schedule_of
from gkd.planning.generation import plan_generation
from gkd.planning.plan import make_plan
from gkd.progress import silence


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='config of a training')
    parser.add_argument('--gpus', '--processes', type=positive, default=1,
                        help='processes, a GPU each')
    parser.add_argument('--size', type=positive, nargs=2, metavar=('WIDTH', 'HEIGHT'),
                        help='largest images (default: what the config scales to)')
    parser.add_argument('--exact', action='store_true',
                        help='run the step at full size; takes as much memory as it reports')
    parser.add_argument('--images', type=positive,
                        help='training images with boxes; with --boxes, bounds prototype '
                             'generation where there are no annotations yet')
    parser.add_argument('--boxes', type=positive, help='boxes in all training images')
    parser.add_argument('--only-prototypes', action='store_true',
                        help='plan only the generation of prototypes, and run no step')
    add_settings_option(parser)
    args = parser.parse_args()
    if (args.images is None) != (args.boxes is None):
        parser.error('--images and --boxes belong together')
    return args


def main():
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    if not args.only_prototypes:
        plan = make_plan(config, args.gpus, args.size, args.exact)
        print('\n'.join(plan.lines()))
        if not plan.generation_images:
            return
        print('\nprototypes')
    try:
        with silence():  # pycocotools prints how it loads
            generation = plan_generation(config, args.images, args.boxes)
    except DataError as error:
        if args.only_prototypes:
            raise
        print(f'  {error}')
        return
    schedule, images = schedule_of(config), args.images
    if images is None and schedule.unit == 'step':  # their passes must be counted
        with silence():
            images = images_per_pass(config)
    generations = schedule.generations(config.model.prototypes.get('interval', 1), images,
                                       args.gpus)
    print('\n'.join(generation.lines(generations, args.gpus)))


if __name__ == '__main__':
    run(main)
