"""A mend of MMDetection's learning rates by layers."""

import pytest
from helpers import small_detectors as small
from torch import nn

from gkd.frameworks import BACKBONES, ConfigDict, build_detector
from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from mmdet.core.optimizers import LearningRateDecayOptimizerConstructor
else:
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor


@BACKBONES.register_module()
class TinyConvNeXt(nn.Module):
    """Layers named as ConvNeXt's, four stages of one block."""

    def __init__(self, **_):
        super().__init__()
        channels = [3, 8, 16, 32, 64]
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(given, made, 3, stride=2 if number else 4, padding=1)
            for number, (given, made) in enumerate(zip(channels, channels[1:])))
        self.stages = nn.ModuleList(nn.ModuleList([nn.Conv2d(made, made, 1)])
                                    for made in channels[1:])

    def forward(self, images):
        maps = []
        for reduce, blocks in zip(self.downsample_layers, self.stages):
            images = blocks[0](reduce(images))
            maps.append(images)
        return maps


def rates(model, decay):
    """Learning rates by the names of parameters, those of a distiller's student without prefix."""
    optimizer = dict(type='AdamW', lr=1.0, weight_decay=0.05)
    constructor = LearningRateDecayOptimizerConstructor(
        optimizer if mmdet_major() == 2 else dict(optimizer=optimizer),
        dict(decay_rate=0.5, decay_type=decay, num_layers=6))
    groups = []
    constructor.add_params(groups, model)
    rate_of = {id(parameter): group['lr'] for group in groups
               for parameter in group['params']}
    return {name.removeprefix('student.'): rate_of[id(parameter)]
            for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('decay', ['layer_wise', 'stage_wise'])
def test_layers_of_a_student_have_the_rates_that_they_have_without_a_teacher(decay):
    student = ConfigDict(small.retinanet(), backbone=dict(type='TinyConvNeXt'))
    alone = rates(build_detector(student), decay)
    assert len({rate for name, rate in alone.items() if name.startswith('backbone')}) > 3
    distiller = ConfigDict(small.distiller(small.retinanet(24), student))
    taught = rates(build_detector(distiller), decay)
    assert {name: taught[name] for name in alone} == alone
    # What the knowledge itself trains learns as fast as the head.
    assert {taught[name] for name in taught.keys() - alone.keys()} == {alone[
        'bbox_head.retina_cls.weight']}
