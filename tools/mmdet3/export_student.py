#!/usr/bin/env python
"""Write a student distilled with MMDetection 3 as a checkpoint for plain MMDetection."""

import argparse
import os.path as osp

import gkd  # noqa: F401  isort: skip  (says what is missing, if anything is)
from mmengine.config import DictAction

from gkd.commands import add_device_option, add_trust_option, run
from gkd.compat.checkpoint import trust_checkpoints
from gkd.engine.commands import export_student, load_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the distillation config')
    parser.add_argument('checkpoint', help='a checkpoint of its training')
    parser.add_argument('output', nargs='?', help='file to write (default: student.pth beside '
                                                  'the checkpoint)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='replace settings of the config')
    add_device_option(parser)
    add_trust_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.trust_checkpoint:
        trust_checkpoints()
    output = args.output or osp.join(osp.dirname(args.checkpoint), 'student.pth')
    export_student(load_config(args.config, args.cfg_options), args.checkpoint, output)
    print(f'wrote {output}; plain MMDetection loads it into the student\'s own config.')


if __name__ == '__main__':
    run(main)
