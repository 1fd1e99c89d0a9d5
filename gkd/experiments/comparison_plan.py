"""The stages of a comparison of methods, and their configs."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Optional

from mmcv import Config
from mmdet.datasets import CocoDataset

from gkd.comparison.degrees import degree_columns
from gkd.comparison.methods import variant, without_methods
from gkd.comparison.plan import NOTHING, Comparison, Planner, check_methods, family_of
from gkd.datasets.tree_crowns import STRIPS, TREE_CROWNS, strip_folder
from gkd.detectors.source import DetectorSource
from gkd.errors import ConfigError, DataError
from gkd.experiments.stages import Detection, Training
from gkd.progress import silence
from gkd.running.config import untrained_model
from gkd.running.data import build_checked_dataset, leaf_configs
from gkd.work_dir import LATEST


def plan(config: Config, title: str, recipes: dict[str, dict], seeds: Sequence[int],
         epochs: Optional[int], work_dir: str, teacher_seed: int = 0,
         strip: Optional[str] = None, fresh: bool = False, suffix: str = '',
         detect: bool = True) -> Comparison:
    """Write the config of every stage, and list the stages.

    Args:
        config: The distillation config.
        title: What is compared.
        recipes: What every method teaches.
        seeds: Seeds of the runs.
        epochs: Replaces the configs' number of epochs.
        work_dir: Where everything goes.
        teacher_seed: Seed of the teacher. Another than 0 trains one of its own.
        strip: Name of the tree crowns' strip that validates. With one, teacher and students are
            trained on the rest, and checkpoints that the config names are not used.
        fresh: Never use the checkpoints that the config names.
        suffix: Added to the names of the runs, to tell them from others in the work dir.
        detect: Plan detections, too.

    Raises:
        ConfigError: Teacher and student cannot be paired, or cannot be trained.
        DataError: There is no validation data.
    """
    if not (epochs or config.get('runner', {}).get('max_epochs')):
        raise ConfigError(f'{config.filename} has no `runner.max_epochs`; use EpochBasedRunner.')
    if strip:
        move_to_strip(config, strip)
    # What is wrong with the detectors is wrong for all methods.
    family = family_of(untrained_model(variant(config, NOTHING)))
    taught, refused = check_methods(config, recipes, untrained_model)
    dataset = validation_data(config)
    columns = degree_columns(dataset.coco) if detect and dataset is not None else []

    planner = StripPlanner(config, work_dir, epochs, strip, fresh, suffix)
    runs = planner.runs({method: recipes[method] for method in taught}, seeds, teacher_seed)
    detections = planner.tests(runs if columns else {}) if detect and dataset is not None else {}
    return Comparison(title, work_dir, planner.preparation, runs, detections, refused,
                      planner.teacher_checkpoint, dataset, columns, data_name(config), family,
                      teacher_seed, strip_of(config), taught)


class StripPlanner(Planner):
    """Plans trainings with MMDetection 2, on another strip of the tree crowns if one is named.

    Args:
        config: The distillation config.
        work_dir: Where everything goes.
        epochs: Replaces the configs' number of epochs.
        strip: Name of the strip that validates.
        fresh: Never use the checkpoints that the config names.
        suffix: Added to the names of the runs.
    """

    kind = Training

    def __init__(self, config: Config, work_dir: str, epochs: Optional[int],
                 strip: Optional[str], fresh: bool, suffix: str):
        super().__init__(config, work_dir, epochs, fresh or bool(strip), suffix)
        self.strip = strip

    def last_checkpoint(self, settings: Config) -> str:
        """Name of the last checkpoint, which is a link."""
        return LATEST

    def own_config(self, role: str) -> Config:
        """The config that trains the teacher or the student alone, on the other strips."""
        config = super().own_config(role)
        if self.strip:
            move_to_strip(config, self.strip)
        return config

    def test(self, role: str, checkpoint: str, folder: str) -> Detection:
        """The detections of a checkpoint on the validation data."""
        return Detection(self.write(f'test_{role}', validation_config(self.config,
                                                                      self.sources[role])),
                         checkpoint, folder)


def move_to_strip(config: Config, strip: str) -> None:
    """Use another strip of the tree crowns for validation.

    Args:
        config: Changed in place.
        strip: Key of :data:`gkd.datasets.tree_crowns.STRIPS`.

    Raises:
        ConfigError: There is no such strip, or the config is of other data.
    """
    if strip not in STRIPS:
        raise ConfigError(f'strip {strip!r} is unknown; known are {", ".join(STRIPS)}.')
    leaves = [leaf for split in ('train', 'val', 'test')
              for leaf in leaf_configs(config.data[split])]
    if not all(str(leaf.ann_file).startswith(TREE_CROWNS) for leaf in leaves):
        raise ConfigError(f'{config.filename}: only the tree crowns have strips; its data are '
                          f'{leaves[0].ann_file}.')
    for leaf in leaves:
        for key in ('ann_file', 'img_prefix'):
            leaf[key] = leaf[key].replace(TREE_CROWNS, strip_folder(strip), 1)


def strip_of(config: Config) -> str:
    """Name of the strip used for validation; empty for data that have none."""
    ann_file = str(leaf_configs(config.data.val)[0].ann_file)
    return next((strip for strip in STRIPS if ann_file.startswith(strip_folder(strip))), '')


def data_name(config: Config) -> str:
    """Name of a config's data set: of its ``data_root``, else of the annotations' folder."""
    root = config.get('data_root') or osp.dirname(leaf_configs(config.data.val)[0].ann_file)
    return osp.basename(osp.normpath(root)).replace('_', '-')


def validation_config(config: Config, source: DetectorSource) -> Config:
    """The config that tests one of the two detectors on the validation data."""
    config = without_methods(config)
    config.model = source.model_config()
    config.data.test = config.data.val
    return config


def validation_data(config: Config) -> Optional[CocoDataset]:
    """The validation data if it is a COCO data set, else None."""
    if 'val' not in config.data:
        raise DataError(f'{config.filename} has no `data.val` to measure AP on.')
    with silence():  # pycocotools reports every step
        dataset = build_checked_dataset(config.data.val, 'data.val', dict(test_mode=True))
    return dataset if isinstance(dataset, CocoDataset) else None
