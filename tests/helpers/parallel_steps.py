"""Steps of distillers in one process or in several, to be compared."""

import copy

import torch
from mmcv import Config
from mmdet.models import build_detector

from helpers import small_detectors as small

CPU = torch.device('cpu')


def build(family, knowledge, take_all=False, recompute=False):
    """A distiller whose batch normalisation has fixed statistics."""
    detector = small.FAMILIES[family]
    student = detector()
    student['backbone'].update(norm_eval=True, with_cp=recompute)
    if take_all:
        for part in ('rpn', 'rcnn'):
            student['train_cfg'][part]['sampler'].update(num=10 ** 6, pos_fraction=1.0)
    torch.manual_seed(0)
    model = build_detector(Config(dict(model=small.distiller(
        detector(24), student, knowledge=[dict(type='RobustDistillingModule', **knowledge)]
    ))).model)
    model.init_weights()
    # The optimiser has begun: no part of the head is at its special first values.
    for parameter in model.student.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    if model.needs.bank:
        model.bank = small.random_bank(model.pair)
    return model.train()


def part_of(data, images):
    return {name: value[images] for name, value in data.items()}


def gradients(model, data, seed=0):
    """Losses and gradients of one step through a (distributed) data-parallel wrapper."""
    torch.manual_seed(seed)
    outputs = model.train_step(copy.deepcopy(data), None)
    model.zero_grad()
    outputs['loss'].backward()
    return outputs['log_vars'], {name: parameter.grad for name, parameter
                                 in model.module.named_parameters() if parameter.requires_grad}
