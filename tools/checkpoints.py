#!/usr/bin/env python
"""List, download and verify the model zoo's checkpoints that recipes start from."""

import argparse
import os
import os.path as osp

from gkd.checkpoints import FOLDER, check_file, download, how_to_get, published
from gkd.commands import run
from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource, sources_of
from gkd.errors import CheckpointError
from gkd.frameworks import build_detector
from gkd.planning.door import load_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('command', choices=['list', 'get', 'verify'],
                        help='show what there is and what is here; download; compare with the '
                             'published hashes, and load into the detectors that the installed '
                             'MMDetection ships')
    parser.add_argument('what', nargs='*',
                        help='names of checkpoints, the beginnings of names, or recipes (default: '
                             'list shows all, verify takes those that are here)')
    parser.add_argument('--folder', default=FOLDER, help='where they lie (default: %(default)s)')
    parser.add_argument('--all', action='store_true', help='every checkpoint there is')
    return parser.parse_args()


def main():
    args = parse_args()
    chosen = choose(args.what)
    if args.command == 'list':
        show(chosen, args.folder)
    elif args.command == 'get':
        if not args.what and not args.all:
            raise CheckpointError('get what? Name checkpoints or recipes, or give --all.')
        for checkpoint in chosen:
            print(f'{download(checkpoint, args.folder)}: complete and verified')
    else:
        here = [checkpoint for checkpoint in chosen
                if args.what or args.all or osp.isfile(osp.join(args.folder, checkpoint.name))]
        if not here:
            print(f'no published checkpoint in {args.folder}')
        verify(here, args.folder)


def choose(what):
    """The published checkpoints that names, beginnings of names and recipes stand for."""
    everything = published()
    chosen = {}
    for item in what or everything:
        if item.endswith('.py'):
            paths = [source.checkpoint for source in sources_of(load_config(item).model)
                     if source.checkpoint is not None]
            found = [osp.basename(path) for path in paths if osp.basename(path) in everything]
            for path in paths:
                if osp.basename(path) not in everything:
                    print(f'{path}: {how_to_get(path)}')
        else:
            found = [name for name in everything if name.startswith(item)]
            if not found:
                raise CheckpointError(f'no published checkpoint is called {item}; known are\n  '
                                      + '\n  '.join(everything))
        chosen.update((name, everything[name]) for name in found)
    return list(chosen.values())


def show(chosen, folder):
    """Print a line for each checkpoint."""
    for checkpoint in chosen:
        path = osp.join(folder, checkpoint.name)
        if osp.isfile(path):
            state = 'here'
        elif osp.isfile(f'{path}.part'):
            state = f'{os.path.getsize(path + ".part") / 1e6:.0f} MB here'
        else:
            state = 'missing'
        size = '' if checkpoint.megabytes is None else f'{checkpoint.megabytes} MB'
        print(f'{state:14}{size:>8}  {checkpoint.name}\n'
              f'{"":24}{checkpoint.config}\n{"":24}{checkpoint.url}')


def verify(chosen, folder):
    """See that files are the published ones and fit; all are looked at before a fault is told."""
    faults = []
    for checkpoint in chosen:
        path = osp.join(folder, checkpoint.name)
        try:
            if not osp.isfile(path):
                raise CheckpointError(f'{path} is missing. {how_to_get(path)}')
            check_file(path)
            # MMDetection 3 has other names for the configs of some.
            if find_file(checkpoint.config):
                source = DetectorSource(checkpoint.config, path, checkpoint.name, {})
                source.load_checkpoint(build_detector(source.model_config()))
            print(f'{path}: as published')
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError('\n'.join(faults))


if __name__ == '__main__':
    run(main)
