"""Whole training steps on a device that is not the CPU: nothing is mixed, nothing waits."""

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import build_distiller, total
from helpers.pretended_device import can_be_pretended, pretended_device

from gkd.detectors.teacher import Teacher
from gkd.registry import KNOWLEDGE

pytestmark = [can_be_pretended, pytest.mark.slow]
METHODS = [dict(type=name) for name, kind in KNOWLEDGE.module_dict.items()
           if kind.__module__.startswith('gkd.')]
IN_CLASS_SPACE = [dict(type='RobustDistillingModule', global_knowledge=dict(space='classes'))]


def cascade(channels=16):
    """A Faster R-CNN with two stages of boxes."""
    detector = small.faster_rcnn(channels)
    roi_head, settings = detector['roi_head'], detector['train_cfg']
    detector['type'] = 'CascadeRCNN'
    roi_head.update(type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5],
                    bbox_head=[dict(roi_head['bbox_head'], reg_class_agnostic=True)] * 2)
    settings['rcnn'] = [settings['rcnn']] * 2
    return detector


DETECTORS = dict(small.FAMILIES, cascade=cascade)


def in_new_process(function, *args):
    """What a function returns; torch keeps to itself there what it learns of devices."""
    # Importing gkd first lets mmdet be imported, as `conftest.py` does for the tests.
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'),
                             importlib.import_module, ('gkd',)) as pool:
        return pool.submit(function, *args).result()


def step_and_waits(model, batch, waits):
    """Take a training step but for the optimiser's; how often the host waited for its losses."""
    waits.clear()
    torch.manual_seed(0)
    losses = model.forward_train(**batch)
    waited = dict(waits)
    total(losses).backward()
    return waited


def waits_of(name, precision, knowledge):
    """Waits in a step of a student alone, and in the same step with a teacher."""
    torch.set_num_threads(1)
    detector = DETECTORS[name]
    model = build_distiller(detector(24), detector(), knowledge=knowledge)
    model.frozen = Teacher(model.frozen.exact, precision,
                           reads_classes=knowledge == IN_CLASS_SPACE)
    bank = small.random_bank(model.pair, class_channels=model.frozen.class_channels)
    with pretended_device() as (device, waits):
        model.to(device)
        model.bank = bank.to(device)
        batch = {key: [part.to(device) for part in value] if key.startswith('gt') else value
                 for key, value in small.batch().items()}
        batch['img'] = batch['img'].to(device)
        alone = step_and_waits(model.student, batch, waits)
        taught = step_and_waits(model, batch, waits)
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        assert {parameter.device for parameter in model.parameters()} == {device}
        return alone, taught


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize(('precision', 'knowledge'), [
    ('bfloat16', METHODS), ('full', IN_CLASS_SPACE)], ids=['methods', 'class space'])
def test_a_taught_step_waits_no_more_than_the_student_alone(name, precision, knowledge):
    alone, taught = in_new_process(waits_of, name, precision, knowledge)
    assert alone and taught == alone


def mixed():
    """The message of an operation on tensors of two devices, and of one that waits."""
    with pretended_device() as (device, waits):
        there = torch.ones(2).to(device)
        with pytest.raises(RuntimeError, match='aten::add mixes devices'):
            there + torch.ones(2)
        assert there.sum().item() == 2 and (there + torch.tensor(1.0)).device == device
        return list(waits)


def test_the_proof_notices():
    wait, = in_new_process(mixed)
    assert 'test_on_a_device.py' in wait
