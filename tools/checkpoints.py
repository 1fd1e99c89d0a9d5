#!/usr/bin/env python
"""List, download and verify the model zoo's checkpoints."""

import argparse
import os
import os.path as osp
from itertools import chain

from gkd.checkpoints import FOLDER, check_file, download, how_to_get
from gkd.commands import run
from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource, sources_of
from gkd.errors import CheckpointError
from gkd.frameworks import MMDET_SCOPE, build_detector
from gkd.planning.door import load_config
from gkd.zoo import find, of_configs, of_recipes


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('command', choices=['list', 'get', 'verify'],
                        help='show what there is and what is here; download; compare with the '
                             'published hashes, and load into the detectors that the installed '
                             'MMDetection ships')
    parser.add_argument('what', nargs='*',
                        help='recipes; names of their checkpoints or the beginnings of these; '
                             'mmdet::FOLDER/FILE.py, or the beginning, for what the model zoo has '
                             'of configs that the installed MMDetection ships (default: what '
                             'recipes need; of these, verify takes the files that are here)')
    parser.add_argument('--folder', default=FOLDER, help='where they lie (default: %(default)s)')
    parser.add_argument('--all', action='store_true', help='every checkpoint that recipes need')
    return parser.parse_args()


def main():
    args = parse_args()
    chosen = choose(args.what)
    if args.command == 'list':
        show(chosen, args.folder)
    elif args.command == 'get':
        if not args.what and not args.all:
            raise CheckpointError('get what? Name checkpoints or recipes, or give --all.')
        for item in args.what:
            if item.startswith(MMDET_SCOPE) and not item.endswith('.py'):
                raise CheckpointError(f'{item} begins the names of {len(named(item))} configs; '
                                      f'give whole names, as `list {item}` shows them.')
        for checkpoint in chosen:
            print(f'{download(checkpoint, args.folder)}: complete and verified')
    else:
        here = [checkpoint for checkpoint in chosen
                if args.what or args.all or osp.isfile(osp.join(args.folder, checkpoint.name))]
        if not here:
            print(f'no published checkpoint in {args.folder}')
        verify(here, args.folder)


def choose(what):
    """The published checkpoints that the arguments stand for, each once."""
    found = {}
    for checkpoint in map(find, of_recipes()) if not what else chain(*map(named, what)):
        found[checkpoint.name] = checkpoint
    return list(found.values())


def named(item):
    """The published checkpoints that an argument stands for."""
    if item.startswith(MMDET_SCOPE):
        found = list(of_configs(item))
    elif item.endswith('.py'):
        return of_recipe(item)
    else:
        names = [name for name in of_recipes() if name.startswith(item)] or [item]
        found = list(filter(None, map(find, names)))
    if not found:
        raise CheckpointError(f'no published checkpoint is called {item}; known are those that '
                              f'`list {MMDET_SCOPE}` shows, and\n  ' + '\n  '.join(of_recipes()))
    return found


def of_recipe(path):
    """The published checkpoints that a config names; where to get the others is printed."""
    paths = [source.checkpoint for source in sources_of(load_config(path).model)
             if source.checkpoint is not None]
    if not paths:
        raise CheckpointError(f'{path} names no checkpoint of a teacher or a student.')
    found = {path: find(osp.basename(path)) for path in paths}
    for path, entry in found.items():
        if entry is None:
            print(f'{path}: ' + ('here; none of the model zoo\'s' if osp.isfile(path)
                                 else how_to_get(path)))
    return list(filter(None, found.values()))


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
        accuracy = '' if checkpoint.box_ap is None else f', {checkpoint.box_ap} box AP'
        print(f'{state:14}{size:>8}  {checkpoint.name}\n'
              f'{"":24}{checkpoint.config}{accuracy}\n{"":24}{checkpoint.url}')


def verify(chosen, folder):
    """Check that files are the published ones and fit; report faults after checking all."""
    faults = []
    for checkpoint in chosen:
        path = osp.join(folder, checkpoint.name)
        try:
            if not osp.isfile(path):
                raise CheckpointError(f'{path} is missing. {how_to_get(path)}')
            check_file(path)
            # The installed MMDetection lacks the configs of some.
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
