"""The data of a config: its name, its files, and which strip of the tree crowns validates."""

from __future__ import annotations

import os.path as osp

from gkd.datasets.tree_crowns import STRIPS, TREE_CROWNS, strip_folder
from gkd.detectors.entries import nested
from gkd.errors import ConfigError
from gkd.frameworks import Config, ConfigDict
from gkd.looking.door import validation_config

# Settings that describe data, in a config of MMDetection 2 and in one of 3.
PARTS = ('data', *(f'{split}_{part}' for split in ('train', 'val', 'test')
                   for part in ('dataloader', 'evaluator')))


def data_name(config: Config) -> str:
    """Name of a config's data set: of its folder, or of the annotations' folder.

    Raises:
        ConfigError: It has no validation data.
    """
    data = validation_config(config)
    root = (next((entry.data_root for entry in nested(data) if entry.get('data_root')), None)
            or config.get('data_root') or osp.dirname(''.join(files_in(data)[:1])))
    return osp.basename(osp.normpath(root)).replace('_', '-')


def annotation_files(config: Config) -> list[str]:
    """Paths of all annotation files that a config trains, validates and tests with."""
    return [path for part in PARTS if config.get(part) for path in files_in(config[part])]


def files_in(entry: ConfigDict) -> list[str]:
    """Paths of the annotation files in a part of a config, at every depth."""
    found = []
    for inner in nested(entry):
        paths = inner.get('ann_file')
        found += [osp.join(inner.get('data_root') or '', path)
                  for path in (paths if isinstance(paths, (list, tuple)) else [paths])
                  if isinstance(path, str)]
    return found


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
    strange = [path for path in annotation_files(config) if not path.startswith(TREE_CROWNS)]
    if strange:
        raise ConfigError(f'{config.filename}: only the tree crowns have strips; its data are '
                          f'{strange[0]}.')
    for part in PARTS:
        for entry in nested(config.get(part) or {}):
            for key, value in entry.items():
                if isinstance(value, str) and value.startswith(TREE_CROWNS):
                    entry[key] = value.replace(TREE_CROWNS, strip_folder(strip), 1)


def strip_of(config: Config) -> str:
    """Name of the strip used for validation; empty for data that have none."""
    file = ''.join(files_in(validation_config(config))[:1])
    return next((strip for strip in STRIPS if file.startswith(strip_folder(strip))), '')
