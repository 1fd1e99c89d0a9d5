"""Learning rates of single layers, with a teacher and without."""

import pytest
from helpers import small_detectors as small
from torch import nn

from gkd.frameworks import BACKBONES, ConfigDict, build_detector
from gkd.installed import mmdet_major

if mmdet_major() == 2:
    from mmcv.runner import DefaultOptimizerConstructor as Default
    from mmdet.core.optimizers import LearningRateDecayOptimizerConstructor
else:
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
    from mmengine.optim import DefaultOptimWrapperConstructor as Default


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


class PartByPart(Default):
    """A constructor of a user, which goes through the parts of a model."""

    def add_params(self, params, module, prefix=''):
        for name, parameter in module.named_parameters(recurse=False):
            stage = (prefix + name).split('.')[2] if prefix.startswith('backbone.') else '4'
            params.append(dict(params=[parameter], lr=self.base_lr * 0.5 ** (4 - int(stage))))
        for name, part in module.named_children():
            self.add_params(params, part, f'{prefix}{name}.')


def rates(model, kind, settings):
    """Learning rates by the names of parameters, those of a distiller's student without prefix."""
    optimizer = dict(type='AdamW', lr=1.0, weight_decay=0.05)
    if mmdet_major() == 2:
        optimizer = kind(optimizer, settings)(model)
    else:
        optimizer = kind(dict(optimizer=optimizer), settings)(model).optimizer
    rate_of = {id(parameter): group['lr'] for group in optimizer.param_groups
               for parameter in group['params']}
    return {name.removeprefix('student.'): rate_of[id(parameter)]
            for name, parameter in model.named_parameters()}


def by(decay_type):
    return dict(decay_rate=0.5, decay_type=decay_type, num_layers=6)


@pytest.mark.parametrize('kind, settings', [
    (LearningRateDecayOptimizerConstructor, by('layer_wise')),
    (LearningRateDecayOptimizerConstructor, by('stage_wise')),
    (PartByPart, dict(norm_decay_mult=1.0)),
    (Default, dict(custom_keys={'backbone.stages.1': dict(lr_mult=0.25),
                                'backbone': dict(lr_mult=0.5), 'neck': dict(lr_mult=0.75)}))])
def test_layers_of_a_student_have_the_rates_that_they_have_without_a_teacher(kind, settings):
    student = ConfigDict(small.retinanet(), backbone=dict(type='TinyConvNeXt'))
    alone = rates(build_detector(student), kind, settings)
    assert len(set(alone.values())) >= 4
    distiller = ConfigDict(small.distiller(small.retinanet(24), student))
    taught = rates(build_detector(distiller), kind, settings)
    assert {name: taught[name] for name in alone} == alone
    # What the knowledge itself trains.
    assert {taught[name] for name in taught.keys() - alone.keys()} == {1.0}


def test_a_distiller_that_trains_nothing_but_its_student():
    student = ConfigDict(small.retinanet(), backbone=dict(type='TinyConvNeXt'))
    pair = small.distiller(student, student, knowledge=[dict(type='PKD')])
    pair.pop('prototypes')
    model = build_detector(ConfigDict(pair))
    assert rates(model, LearningRateDecayOptimizerConstructor, by('layer_wise')) == rates(
        model.student, LearningRateDecayOptimizerConstructor, by('layer_wise'))
