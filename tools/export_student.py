#!/usr/bin/env python
"""Write a distilled student as a checkpoint that plain MMDetection loads."""

import argparse
import os.path as osp

from gkd.commands import add_device_option, add_trust_option, run
from gkd.commands.settings import add_settings_option
from gkd.installed import mmdet_major

if mmdet_major() == 3:
    from gkd.engine.config import load_config
    from gkd.engine.export import export_student
else:
    from gkd.running import export_student, load_config


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='the distillation config, or the student\'s own')
    parser.add_argument('checkpoint', help='a checkpoint of the training')
    parser.add_argument('output', nargs='?', help='file to write (default: student.pth beside '
                                                  'the checkpoint)')
    add_settings_option(parser)
    add_device_option(parser)
    add_trust_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    output = args.output or osp.join(osp.dirname(args.checkpoint), 'student.pth')
    config = load_config(args.config, args.cfg_options)
    own_config = export_student(config, args.checkpoint, output)
    print(f'wrote {output}; it fits {own_config}\n\n'
          f'To use it in plain MMDetection:\n'
          f'    import gkd  # only where mmcv is installed without its compiled operators\n'
          f'    from mmdet.apis import inference_detector, init_detector\n'
          f'    model = init_detector({own_config!r}, {output!r}, device="cpu")\n'
          f'    inference_detector(model, "image.png")\n')


if __name__ == '__main__':
    run(main)
