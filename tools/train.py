#!/usr/bin/env python
"""Train a distiller, a teacher or a plain student; without a config, run the quickstart."""

import argparse
import os.path as osp

from gkd.commands import (
    add_device_option,
    add_launcher_options,
    add_training_options,
    add_trust_option,
    run,
)
from gkd.commands.options import replace_epochs
from gkd.commands.settings import add_settings_option
from gkd.compat.distributed import init_distributed
from gkd.quickstart import add_arguments
from gkd.quickstart.run import quickstart
from gkd.running import load_config, train


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file; none runs the quickstart')
    add_training_options(parser)
    parser.add_argument('--resume-from', dest='resume', metavar='CHECKPOINT',
                        default=argparse.SUPPRESS, help='the same as --resume CHECKPOINT')
    parser.add_argument('--auto-resume', dest='resume', action='store_const', const='auto',
                        default=argparse.SUPPRESS, help='the same as --resume auto')
    parser.add_argument('--new-optimizer', action='store_true',
                        help='when resuming, apply the config\'s settings of the optimiser; else '
                             'those of the checkpoint stay')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate to the images of a step, as '
                             'auto_scale_lr.base_batch_size in the config says')
    parser.add_argument('--deterministic', action='store_true',
                        help='use deterministic CUDA kernels only')
    add_settings_option(parser, '--options')
    add_launcher_options(parser, 'train.sh')
    add_device_option(parser)
    add_trust_option(parser)
    add_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.config is None:
        quickstart(args.data, args.family, args.seeds, args.teacher_seed, args.epochs,
                   args.work_dir)
        return
    config = load_config(args.config, args.cfg_options)
    if args.launcher != 'none':
        init_distributed(args.launcher)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    if args.seed is not None:
        config.seed = args.seed
    if args.epochs is not None:
        replace_epochs(config, args.epochs)
    if args.deterministic:
        config.deterministic = True
    if args.auto_scale_lr:
        config.merge_from_dict({'auto_scale_lr.enable': True})
    train(config, resume=args.resume, validate=not args.no_validate,
          new_optimizer=args.new_optimizer)


if __name__ == '__main__':
    run(main)
