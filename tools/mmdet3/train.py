#!/usr/bin/env python
"""Train with MMDetection 3; tools/train.sh runs this where MMDetection 3 is installed."""

import argparse

import gkd  # noqa: F401  isort: skip  (says what is missing, if anything is)
import torch

from gkd.commands import (
    add_device_option,
    add_launcher_options,
    add_training_options,
    add_trust_option,
    run,
)
from gkd.commands.allocator import keep_freed_memory
from gkd.commands.options import rank_of, replace_epochs
from gkd.commands.settings import add_settings_option
from gkd.engine.commands import choose_start
from gkd.engine.config import load_config
from gkd.engine.runner import Runner
from gkd.locks import training_lock
from gkd.quickstart import add_arguments


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file, such as one of configs/mmdet3/; '
                                                 'without one the quickstart runs')
    add_training_options(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the images of a step')
    add_settings_option(parser)
    add_launcher_options(parser, 'train.sh')
    add_device_option(parser)
    add_trust_option(parser)
    add_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.config is None:
        from gkd.quickstart.run import quickstart  # what it draws with is slow to import
        quickstart(args.data, args.family, args.seeds, args.teacher_seed, args.epochs,
                   args.work_dir)
        return
    config = load_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    with training_lock(config.work_dir, first=rank_of(args.launcher) == 0):
        train(config, args)


def train(config, args):
    choose_start(config, args.resume)
    if args.no_validate:
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
    if args.seed is not None:
        config.randomness = dict(config.get('randomness', {}), seed=args.seed)
    if args.epochs is not None:
        replace_epochs(config, args.epochs)
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        config.merge_from_dict({'auto_scale_lr.enable': True})
    if not torch.cuda.is_available():
        keep_freed_memory()
    runner = Runner.with_checked_data(config, 'train', 'val')
    runner.train()
    if runner.rank == 0:
        # Not above: the libraries that draw are needed at the end alone.
        from gkd.report.summary import summarise
        print(f'\n{summarise(runner.work_dir, args.config)}')


if __name__ == '__main__':
    run(main)
