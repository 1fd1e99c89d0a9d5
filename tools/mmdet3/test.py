#!/usr/bin/env python
"""Evaluate with MMDetection 3; tools/test.sh runs this where MMDetection 3 is installed."""

import argparse

import gkd  # noqa: F401  isort: skip  (says what is missing, if anything is)
from mmdet.evaluation import DumpDetResults

from gkd.commands import add_device_option, add_launcher_options, add_trust_option, run
from gkd.commands.settings import add_settings_option
from gkd.compat.checkpoint import check_is_file
from gkd.engine.commands import augment_tests
from gkd.engine.config import detector_config, load_config
from gkd.engine.runner import Runner
from gkd.errors import ConfigError
from gkd.files import check_writable


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='distillation config, or the detector\'s own')
    parser.add_argument('checkpoint', help='checkpoint of the training, or the exported student')
    parser.add_argument('--work-dir', help='where logs and metrics go')
    parser.add_argument('--out', help='file to write all detections to, for MMDetection\'s '
                                      'analysis tools; ends with .pkl')
    parser.add_argument('--show-dir', help='folder to draw detections into, beside the ground '
                                           'truth')
    parser.add_argument('--tta', action='store_true',
                        help='augment every image and merge what is detected in it, as '
                             '`tta_model` and `tta_pipeline` of the config say')
    add_settings_option(parser)
    add_launcher_options(parser, 'test.sh')
    add_device_option(parser)
    add_trust_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    config.model, config.load_from = detector_config(config), None
    if args.tta:
        augment_tests(config)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {args.out}: must end with .pkl.')
    if args.out:
        check_writable(args.out)
    if args.show_dir:
        config.visualizer = config.get('visualizer') or dict(type='DetLocalVisualizer')
        config.default_hooks = {**config.get('default_hooks', {}), 'visualization': dict(
            type='DrawingHook', folder=args.show_dir)}
    check_is_file(args.checkpoint)  # before data are made or read
    runner = Runner.with_checked_data(config, 'test')
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.load_detector(args.checkpoint)
    return runner.test()


if __name__ == '__main__':
    run(main)
