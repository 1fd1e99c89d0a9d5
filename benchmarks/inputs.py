"""What the benchmarks run on: the tree crowns' configs, COCO's detectors, random boxes."""

from __future__ import annotations

import logging
import os

import measure
import numpy as np
import torch
from mmcv import Config, ConfigDict
from mmcv.parallel import collate, scatter

import gkd  # noqa: F401  (patches mmdet, so that scripts that import this file first can import it)
from gkd.datasets import prepare_tree_crowns
from gkd.quickstart import CONFIGS, FAMILIES
from gkd.running import load_config
from gkd.running.data import build_checked_dataset

__all__ = ['FAMILIES', 'coco_model', 'first_batch', 'quickstart_config', 'random_boxes']

for name in ('mmcv', 'mmdet'):
    logging.getLogger(name).setLevel(logging.WARNING)  # they list every initialised weight


def quickstart_config(family: str) -> Config:
    """The tree crowns' distillation config, with untrained detectors; makes its data set."""
    os.chdir(measure.REPOSITORY)
    prepare_tree_crowns()
    config = load_config(CONFIGS['tree-crowns'].format(family))
    for role in ('teacher', 'student'):
        config.model[role].checkpoint = None
    return config


def first_batch(config: Config) -> dict:
    """A training batch of a config's first images, on the device."""
    dataset = build_checked_dataset(config.data.train, 'data.train')
    batch_size = config.data.train_dataloader.samples_per_gpu
    np.random.seed(0)
    batch = collate([dataset[index] for index in range(batch_size)], batch_size)
    return measure.on_device(scatter(batch, [-1])[0])


def coco_model(family: str, **prototypes) -> ConfigDict:
    """A distiller for COCO, ResNet-101 teaching ResNet-50, with untrained detectors."""
    def detector(depth: int) -> dict:
        return dict(config=f'mmdet::{family}/{family}_r{depth}_fpn_2x_coco.py', checkpoint=None,
                    overrides={'backbone.init_cfg': None})

    return Config(dict(model=dict(
        type='Distiller', teacher=detector(101), student=detector(50),
        prototypes=dict(type='PrototypeGenerationModule', **prototypes),
        knowledge=[dict(type='RobustDistillingModule')]))).model


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Boxes ``(count, 4)`` inside an image, log-uniform from 16 pixels to half its size."""
    limits = torch.tensor([size[1], size[0]], dtype=torch.float)
    shortest = torch.full((2,), 16.).log()
    sides = torch.lerp(shortest.expand(count, 2), (limits / 2).log(),
                       torch.rand(count, 2, generator=generator)).exp()
    corner = torch.rand(count, 2, generator=generator) * (limits - sides)
    return torch.cat([corner, corner + sides], dim=1)
