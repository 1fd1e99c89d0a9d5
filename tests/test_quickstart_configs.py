"""The quickstart's detectors take a step at their images' size, in their layout of memory."""

import os.path as osp
from glob import glob

import pytest
import torch
from helpers.distillers import total
from helpers.small_detectors import batch
from mmdet.models import build_detector

from gkd.commands.layout import place
from gkd.repository import REPOSITORY
from gkd.running.config import load_config

SIZES = {'tree-crowns': 256, 'digit-scenes': 192, 'character-scenes': 192}
CONFIGS = sorted(
    file for folder in ('quickstart', 'digits', 'characters')
    for file in glob(osp.join(REPOSITORY, 'configs', folder, '*.py'))
    if not osp.basename(file).startswith('gkd_'))


@pytest.mark.parametrize('config', CONFIGS, ids=lambda file: osp.basename(file)[:-3])
def test_a_step(config):
    """A library's gradient that does not suit a layer's width ends the whole process here."""
    config = load_config(config)
    size = next(size for name, size in SIZES.items() if name in config.filename)
    torch.manual_seed(0)
    model = place(build_detector(config.model), torch.device('cpu'), config).train()
    data = batch(size=size)
    data['gt_labels'] = [torch.zeros_like(labels) for labels in data['gt_labels']]
    total(model.forward_train(**data)).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert len(gradients) > 50 and all(gradient.isfinite().all() for gradient in gradients)
