#!/usr/bin/env python
"""Write the distillation config of a pair, and say what it will teach, leave out and cost.

tools/distill.sh runs it and trains what it wrote.
"""

import argparse
import sys

from gkd.commands import add_device_option, add_trust_option, positive, run
from gkd.commands.distillation import fetch_from_zoo
from gkd.commands.options import replace_epochs
from gkd.commands.settings import DictAction
from gkd.planning.distill import prepare
from gkd.planning.door import distillation_config


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('student', help='CONFIG or CONFIG:CHECKPOINT; data and schedule are its')
    parser.add_argument('teacher', help='CONFIG:CHECKPOINT, or CONFIG:zoo for the checkpoint that '
                                        'the model zoo has of mmdet::FILE')
    parser.add_argument('--method', default='gkd', metavar='NAME+NAME',
                        help='kinds of knowledge, such as gkd, class-space or gkd+fgd '
                             '(default: gkd)')
    parser.add_argument('--gpus', type=positive, default=1, help='processes that will train')
    parser.add_argument('--work-dir', help='where the config goes, and all that training writes '
                                           '(default: work_dirs/distill/STUDENT_from_TEACHER)')
    parser.add_argument('--epochs', type=positive, help='replaces the config\'s number of epochs')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='replace settings of the student\'s config')
    add_device_option(parser)
    add_trust_option(parser)
    # The rest is the training's; it reads and checks them.
    return parser.parse_known_args()[0]


def main():
    args = parse_args()
    options = dict(args.cfg_options or {})
    if args.work_dir:
        options['work_dir'] = args.work_dir
    student, teacher = fetch_from_zoo(args.student, args.teacher)
    config = distillation_config(student, teacher, args.method, options)
    if args.epochs:
        replace_epochs(config, args.epochs)
    path, lines = prepare(config, args.gpus)
    print('\n'.join(lines), file=sys.stderr)
    print(path)


if __name__ == '__main__':
    run(main)
