"""What MMDetection's model zoo has published: which detectors, and where their weights are."""

from __future__ import annotations

import json
import os.path as osp
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from glob import glob
from typing import Any, Optional
from urllib.parse import unquote

import yaml

from gkd.frameworks import MMDET_SCOPE, mmdet_configs
from gkd.repository import REPOSITORY

MANIFEST = osp.join(REPOSITORY, 'checkpoints', 'manifest.json')
# How the zoo ends the names of its files.
DIGEST = re.compile(r'-([0-9a-f]{8})\.pth$')


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint of the model zoo.

    Attributes:
        name: File name. The zoo ends it in the first digits of the file's SHA-256.
        url: Where the zoo has it.
        sha256: Those digits.
        config: The detector's config, as a distillation config names it.
        megabytes: About how large it is; None where it is not known.
        box_ap: COCO box AP in percent, as the zoo gives it; None where it gives none.
    """

    name: str
    url: str
    sha256: str
    config: str
    megabytes: Optional[int] = None
    box_ap: Optional[float] = None


@cache
def of_recipes(path: str = MANIFEST) -> dict[str, PublishedCheckpoint]:
    """The checkpoints that recipes start from, by name; none where the list is not installed.

    They are listed in ``checkpoints/manifest.json``: each MMDetection's own lists lack some that
    the other has.
    """
    if not osp.isfile(path):
        return {}
    with open(path, encoding='utf-8') as file:
        return {entry['name']: PublishedCheckpoint(**entry)
                for entry in json.load(file)['checkpoints']}


@cache
def of_mmdet() -> dict[str, PublishedCheckpoint]:
    """The checkpoints that the installed MMDetection lists for its configs, by name.

    It ships a ``metafile.yml`` in each folder of configs.
    """
    found = {}
    for path in sorted(glob(osp.join(mmdet_configs(), '*', 'metafile.yml'))):
        with open(path, encoding='utf-8') as file:
            listed = yaml.load(file, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
        models = listed.get('Models') if isinstance(listed, dict) else listed
        found.update((entry.name, entry) for entry in map(entry_of, models or ())
                     if entry is not None)
    return found


def entry_of(model: dict[str, Any]) -> Optional[PublishedCheckpoint]:
    """An entry of a metafile; None if it names no detector's config and weights that are there."""
    config, url = model.get('Config'), model.get('Weights')
    digest = DIGEST.search(url) if isinstance(url, str) else None  # trackers have several
    if not config or digest is None:
        return None
    path = osp.relpath(unquote(config), 'configs')
    if not osp.isfile(osp.join(mmdet_configs(), path)):
        return None
    name = unquote(osp.basename(url))
    return PublishedCheckpoint(name, url, digest[1], MMDET_SCOPE + path.replace(osp.sep, '/'),
                               getattr(of_recipes().get(name), 'megabytes', None), box_ap(model))


def box_ap(model: dict[str, Any]) -> Optional[float]:
    """The box AP that a metafile gives for a model.

    Example:
        >>> box_ap(dict(Results=[dict(Task='Object Detection', Metrics={'box AP': 36.5})]))
        36.5
    """
    metrics = (result.get('Metrics') or {} for result in model.get('Results') or ())
    return next((value for values in metrics
                 if isinstance(value := values.get('box AP'), (int, float))), None)


def find(name: str) -> Optional[PublishedCheckpoint]:
    """The published checkpoint of this file name; None if there is none."""
    if DIGEST.search(name) is None:
        return None
    return of_mmdet().get(name) or of_recipes().get(name)


def of_configs(start: str) -> Iterator[PublishedCheckpoint]:
    """The published checkpoints of the configs whose paths begin so.

    Args:
        start: ``mmdet::FOLDER/FILE.py``, or the beginning of that.
    """
    for entry in {**of_recipes(), **of_mmdet()}.values():
        if entry.config.startswith(start):
            yield entry
