#!/usr/bin/env python
"""Evaluate a detector: COCO mAP of a distilled student, a teacher or any plain detector."""

import argparse

from gkd.commands import add_device_option, add_launcher_options, add_trust_option, run
from gkd.commands.settings import DictAction, add_settings_option
from gkd.compat.distributed import init_distributed
from gkd.errors import ConfigError
from gkd.running import load_config, test


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='distillation config, or the detector\'s own')
    parser.add_argument('checkpoint', help='checkpoint of the training, or an exported student')
    parser.add_argument('--eval', nargs='+', metavar='METRIC', default=None,
                        help='metrics of the data set (default: those of the config\'s '
                             '`evaluation`, or bbox, unless --format-only, --out or --show-dir '
                             'asks for something else)')
    parser.add_argument('--out', help='write the raw results to this .pkl file')
    parser.add_argument('--format-only', action='store_true',
                        help='write the results in the data set\'s format, do not evaluate; '
                             'choose where with --eval-options jsonfile_prefix=PREFIX')
    parser.add_argument('--show-dir', help='draw the detections into this folder')
    parser.add_argument('--show-score-thr', type=float, default=0.3,
                        help='draw detections with at least this score')
    add_settings_option(parser)
    parser.add_argument('--eval-options', '--options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE',
                        help='settings for the evaluation or the formatting')
    add_launcher_options(parser, 'test.sh')
    add_device_option(parser)
    add_trust_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.eval and args.format_only:
        raise ConfigError('--eval and --format-only exclude each other.')
    other_output = args.format_only or args.out or args.show_dir
    config = load_config(args.config, args.cfg_options)
    usual = (config.get('evaluation') or {}).get('metric', 'bbox')
    usual = [usual] if isinstance(usual, str) else list(usual)
    metrics = args.eval or ([] if other_output else usual)
    if args.launcher != 'none':
        init_distributed(args.launcher)
    test(config, args.checkpoint, metrics, args.out, args.format_only, args.show_dir,
         args.show_score_thr, args.eval_options)


if __name__ == '__main__':
    run(main)
