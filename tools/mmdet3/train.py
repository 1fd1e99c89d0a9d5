#!/usr/bin/env python
"""Train with MMDetection 3; tools/train.sh runs this where MMDetection 3 is installed."""

import argparse

from mmengine.config import DictAction
from mmengine.runner import Runner, find_latest_checkpoint

from gkd.compat.checkpoint import trust_checkpoints
from gkd.engine.commands import load_config, run
from gkd.errors import ConfigError


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file, such as one of configs/mmdet3/')
    parser.add_argument('--work-dir', help='where checkpoints, logs and prototypes go '
                                           '(default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--resume', default='auto', metavar='auto|never|CHECKPOINT',
                        help='go on from the last checkpoint in the work dir, start anew, or go '
                             'on from a checkpoint')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate')
    parser.add_argument('--seed', type=int, help='replaces the config\'s seed')
    parser.add_argument('--epochs', type=int, help='replaces the config\'s number of epochs')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the images of a step')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='replace settings of the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='who started this process; tools/train.sh sets it')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='read checkpoints that hold code, and run it')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.trust_checkpoint:
        trust_checkpoints()
    if args.config is None:
        raise ConfigError('with MMDetection 3 a config must be named, such as one of '
                          'configs/mmdet3/; the quickstart runs with MMDetection 2.')
    config = load_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    config.resume = args.resume not in ('auto', 'never')
    if config.resume:
        config.load_from = args.resume
    elif args.resume == 'auto' and find_latest_checkpoint(config.work_dir):
        config.resume, config.load_from = True, None
    if args.no_validate:
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
    if args.seed is not None:
        config.randomness = dict(config.get('randomness', {}), seed=args.seed)
    if args.epochs is not None:
        config.train_cfg.max_epochs = args.epochs
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        config.auto_scale_lr = dict(config.get('auto_scale_lr', {}), enable=True)
    Runner.from_cfg(config).train()


if __name__ == '__main__':
    run(main)
