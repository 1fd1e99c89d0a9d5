"""Distillers of small detectors, and what a step of theirs costs."""

import copy

import torch
from mmcv import Config
from mmdet.models import build_detector

from helpers import small_detectors as small

RDM_TERMS = {'loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft'}


def build(config, seed=0):
    torch.manual_seed(seed)
    model = build_detector(Config(dict(model=copy.deepcopy(config))).model)
    model.init_weights()
    return model.train()


def build_distiller(teacher, student, **kwargs):
    model = build(small.distiller(teacher, student, **kwargs))
    if model.needs.bank:
        model.bank = small.random_bank(model.pair)
    return model


def losses_of(model, data, seed=0):
    torch.manual_seed(seed)
    return model.forward_train(**copy.deepcopy(data))


def assert_same_state(one, other):
    """Two state dicts hold the same tensors."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def total(losses):
    return sum(sum(value) if isinstance(value, list) else value
               for name, value in losses.items() if 'loss' in name)
