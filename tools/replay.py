#!/usr/bin/env python
"""Run a training step again whose loss was not finite: its losses, and where that begins."""

import argparse

from gkd.commands import run
from gkd.commands.settings import add_settings_option
from gkd.looking.door import load_config
from gkd.looking.replay import replay


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the run')
    parser.add_argument('step', help='file not_finite_*.safetensors in its work dir')
    add_settings_option(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    losses, origin = replay(load_config(args.config, args.cfg_options), args.step)
    for name, value in losses.items():
        print(f'{name:24}{value}')
    print(f'\n{origin}')


if __name__ == '__main__':
    run(main)
