#!/usr/bin/env python
"""Run recipes for one step at full size, without their data and checkpoints.

Teacher and student start from random weights in the format of the model zoo. Each recipe generates
prototypes, trains one step on two synthetic images, exports its student and evaluates it.
"""

import argparse
import contextlib
import gc
import os
import os.path as osp
import tempfile
import traceback
import warnings

from gkd.commands import run
from gkd.errors import GKDError
from gkd.progress import silence, without_warnings
from gkd.recipes import RecipeError
from gkd.recipes.door import check_recipe, recipes


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='*', default=recipes(),
                        help='config files (default: all of configs/coco and '
                             'configs/voc; with MMDetection 3, of configs/mmdet3)')
    parser.add_argument('--folder', help='keep the random checkpoints here, for the next time '
                                         '(default: a temporary folder)')
    return parser.parse_args()


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        failed = [path for path in args.recipes if not passes(path, args.folder or temporary)]
    print(f'\n{len(args.recipes) - len(failed)} of {len(args.recipes)} recipes run')
    if failed:
        raise RecipeError('these do not: ' + ' '.join(map(osp.basename, failed)))


def passes(path, folder):
    """Check a recipe and print a line about it; whether it runs."""
    name = osp.basename(path)
    try:
        with quiet():
            report = check_recipe(path, folder)
    except Exception as error:  # a fault of one recipe must not hide those of the next
        if not isinstance(error, GKDError):
            traceback.print_exc()
        print(f'FAILED  {name}: {error}', flush=True)
        return False
    finally:
        gc.collect()
    taught = ' '.join(f'{name}={value:.3g}' for name, value in report.distillation.items())
    print(f'ok {report.seconds:4.0f} s  {name}: {taught}', flush=True)
    return True


@contextlib.contextmanager
def quiet():
    """Show nothing that a recipe prints, logs or warns of; bars write past Python's stdout."""
    terminal = os.dup(1)
    with open(os.devnull, 'w') as nowhere, silence(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        os.dup2(nowhere.fileno(), 1)
        try:
            with without_warnings():
                yield
        finally:
            os.dup2(terminal, 1)
            os.close(terminal)


if __name__ == '__main__':
    run(main)
