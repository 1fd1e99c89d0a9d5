"""``python -m gkd.prototypes plan CONFIG``: what the generation of prototypes will take.

Only annotations and configs are read; neither images nor checkpoints need to be there.
"""

from __future__ import annotations

import argparse
import logging
import os.path as osp
from math import ceil

from mmcv import Config
from mmdet.datasets import CustomDataset
from mmdet.models import build_detector

from gkd.detectors.inspection import inspect_pair
from gkd.detectors.source import DetectorSource
from gkd.distiller import Distiller, build_generation
from gkd.errors import ConfigError, DataError
from gkd.prototypes.features import choose_candidates
from gkd.prototypes.hook import PrototypeHook
from gkd.prototypes.plan import Plan
from gkd.running.cli import DictAction, positive, run
from gkd.running.config import load_config
from gkd.running.data import check_classes, leaf_configs, prototype_datasets


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='python -m gkd.prototypes', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    plan = commands.add_parser('plan', help='print images to run, bytes to keep and matrix work')
    plan.add_argument('config', help='distillation config')
    plan.add_argument('--images', type=positive, help='images with boxes; with --boxes, upper '
                                                      'bounds are printed and no annotation read')
    plan.add_argument('--boxes', type=positive, help='boxes in all images')
    plan.add_argument('--processes', type=positive, default=1,
                      help='processes that will share the images')
    plan.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                      help='replace settings of the config')
    args = parser.parse_args()
    if (args.images is None) != (args.boxes is None):
        parser.error('--images and --boxes belong together')
    return args


def make_plan(config: Config, images: int = None, boxes: int = None) -> Plan:
    """Plan the generation of a distillation config.

    Args:
        config: The config.
        images: Images with boxes; None counts in the annotations.
        boxes: Boxes in all images; None likewise.

    Raises:
        ConfigError: The config distils nothing, or without prototypes.
        DataError: The annotations are missing.
    """
    if config.model.type != Distiller.__name__ or not config.model.get('prototypes'):
        raise ConfigError(f'{config.filename} generates no prototypes: give a config whose '
                          f'`model` is a Distiller with `prototypes`.')
    module = build_generation(config.model.prototypes)
    pair = inspect_pair(*(
        build_detector(DetectorSource.parse(config.model[role], f'model.{role}').model_config())
        for role in ('teacher', 'student')))
    settings = dict(teacher_channels=pair.channels(pair.teacher),
                    student_channels=pair.channels(pair.student),
                    num_prototypes=module.pursuit['num_prototypes'],
                    max_pairs=module.pursuit.get('max_pairs', 2 ** 24))
    if images is not None:
        return Plan.bound(images, boxes, pair.num_classes, module.max_images, **settings)
    candidates = choose_candidates(annotated_datasets(config), module.max_images, module.min_size,
                                   module.seed)
    return Plan.of(candidates, pair.num_classes, module.batch_size, **settings)


def annotated_datasets(config: Config) -> list[CustomDataset]:
    """The data sets that prototypes come from; their images need not be there.

    Raises:
        DataError: Annotations are missing or do not fit the config.
    """
    entries = prototype_datasets(config)
    for entry in entries:
        for leaf in leaf_configs(entry):
            files = leaf.ann_file if isinstance(leaf.ann_file, (list, tuple)) else [leaf.ann_file]
            for path in files:
                if not osp.exists(osp.join(leaf.get('data_root') or '', path)):
                    raise DataError(
                        f'data.train.ann_file: no such file: {path}. Without annotations, give '
                        f'the totals: --images N --boxes N prints upper bounds.')
    datasets = PrototypeHook(entries).datasets
    for dataset in datasets:
        check_classes(dataset, 'data.train')
    return datasets


def main() -> None:
    """Print the plan."""
    args = parse_args()
    for name in ('mmcv', 'mmdet'):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = load_config(args.config, args.cfg_options)
    plan = make_plan(config, args.images, args.boxes)
    generations = ceil(config.runner.max_epochs / config.model.prototypes.get('interval', 1))
    print('\n'.join(plan.lines(generations, args.processes)))


if __name__ == '__main__':
    run(main)
