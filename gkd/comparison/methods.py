"""What a student can be taught in a comparison, by name."""

from __future__ import annotations

import copy
import os.path as osp
import re
from collections.abc import Sequence
from typing import Optional

from gkd.detectors.config_files import read_config
from gkd.detectors.replacement import replace_settings
from gkd.errors import ConfigError, did_you_mean
from gkd.frameworks import Config
from gkd.knowledge.checks import check_entries
from gkd.report.results import PLAIN, STUDENT, TEACHER
from gkd.repository import REPOSITORY

METHODS = osp.join(REPOSITORY, 'configs', '_base_', 'comparison.py')
OWN = 'gkd'
RESERVED = (PLAIN, STUDENT, TEACHER, 'configs', 'detections')
KEYS = ('methods', 'variants')  # of a distillation config; trainings know nothing of them


def choose_methods(config: Config, names: Optional[Sequence[str]] = None) -> dict[str, dict]:
    """What every method sets in a distillation config's ``model``, by name.

    A name stands for the config's own knowledge (``gkd``), for a list of knowledge among
    ``methods``, or for changes to the config's own ``model`` among ``variants``, given as
    ``--cfg-options`` are. Methods and variants are those of ``configs/_base_/comparison.py``,
    replaced and joined by the config's.

    Args:
        config: The distillation config.
        names: Names, possibly combined with ``+``; None for ``gkd`` and each of the methods.

    Returns:
        By name ``dict(knowledge=[...], prototypes={...})``, with all else that a variant changes.

    Raises:
        ConfigError: A name is unknown or cannot name a folder, or a variant does not fit the
            config.
    """
    shipped = read_config(METHODS)
    methods = {**shipped.methods, **config.get('methods', {})}
    variants = {**shipped.variants, **config.get('variants', {})}
    for name, knowledge in methods.items():
        check_entries(knowledge, f'methods.{name}')
    known = [OWN, *methods, *variants]
    for name in known:
        if name in RESERVED or not re.fullmatch(r'[\w-]+', name):
            raise ConfigError(f'methods: {name!r} cannot name a method; use letters, digits, _ '
                              f'and -, and none of {", ".join(RESERVED)}.')
    chosen = {}
    for name in names or [OWN, *methods]:
        settings = dict(knowledge=[], prototypes=config.model.get('prototypes'))
        for part in name.split('+'):
            if part in methods:
                settings['knowledge'] += methods[part]
            elif part in known:
                changed = vary(config, part, variants.get(part, {}))
                settings['knowledge'] += changed.get('knowledge', [])
                for key in {key.split('.')[0] for key in variants.get(part, {})} - {'knowledge'}:
                    settings[key] = changed[key]
            else:
                raise ConfigError(f'--methods {name}: {part!r} unknown; known are '
                                  f'{", ".join(known)}, and their combinations such as '
                                  f'{OWN}+{known[1]}.{did_you_mean(part, known)}')
        chosen[name] = settings
    return chosen


def vary(config: Config, name: str, changes: dict) -> dict:
    """The config's ``model`` with changes to some of its settings.

    Args:
        config: The distillation config.
        name: Name of the variant, for messages.
        changes: New values by dotted name.

    Raises:
        ConfigError: The config has no such place.
    """
    varied = Config(dict(model=copy.deepcopy(config.model)))
    replace_settings(varied, {f'model.{key}': value for key, value in changes.items()},
                     f'variants.{name}')
    return varied.model


def variant(config: Config, settings: dict) -> Config:
    """The distillation config with something else to teach.

    Args:
        config: The config; left as it is.
        settings: Settings of its ``model``, as :func:`choose_methods` gives them.
    """
    config = without_methods(config)
    config.model.update(copy.deepcopy(settings))
    return config


def without_methods(config: Config) -> Config:
    """A copy of a config that names no methods to compare."""
    config = copy.deepcopy(config)
    for key in KEYS:
        config.pop(key, None)
    return config
