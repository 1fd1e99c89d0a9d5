"""Losses and weights that are not finite: named, kept, stopped at or skipped, never saved."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.refusals import append
from helpers.running import run_tool
from helpers.zoo_detectors import tood
from mmcv.parallel import DataContainer
from mmcv.runner import HOOKS, Hook
from torch import nn

from gkd.finite.step import KeptStep
from gkd.looking.replay import replay
from gkd.running import load_config
from gkd.running.finite import FiniteLossHook
from studies import small_models


@HOOKS.register_module()
class Poison(Hook):
    """Spoil something at given steps of the run, from 1.

    Args:
        steps: The steps.
        what: ``'image'``, ``'term'`` (the global knowledge), or ``'weight'``, which is spoilt
            after the step.
    """

    def __init__(self, steps, what):
        self.steps = steps
        self.what = what

    def before_train_iter(self, runner):
        if runner.iter + 1 not in self.steps:
            return
        if self.what == 'image':
            runner.data_batch['img'].data[0].fill_(math.nan)
        elif self.what == 'term':
            runner.model.module.knowledge[0].global_knowledge.loss_weight = math.inf

    def after_train_iter(self, runner):
        if runner.iter + 1 in self.steps and self.what == 'weight':
            next(runner.model.parameters()).data.view(-1)[0] = math.nan


def yolox():
    """It draws the size of its images every two steps."""
    model = small_models.small_config('yolox/yolox_tiny_8x8_300e_coco')
    model['bbox_head']['num_classes'] = small.NUM_CLASSES
    return {**model, 'input_size': (128, 128), 'random_size_range': (2, 6),
            'random_size_interval': 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working directory with a pair of two-stage detectors: 2 epochs of 4 steps."""
    tiny_data.write_pair(tmp_path, 'two_stage', batch_size=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(what, *steps, skip=0, hooks=''):
    """Train with poison; returns the exit status and what was printed."""
    with open('distiller.py', 'a') as file:
        file.write(f'custom_hooks = [dict(type="Poison", steps={steps}, what={what!r}, '
                   f'priority="VERY_HIGH"), dict(type="FiniteLossHook", skip={skip}){hooks}]\n'
                   'log_config["interval"] = 1\n')
    status, _, stderr = run_tool('train', 'distiller.py', '--work-dir', 'work', '--no-validate')
    return status, stderr


@pytest.mark.parametrize('channels_last', [False, True])
def test_the_term_is_named_and_the_step_can_be_run_again(folder, channels_last):
    with open('distiller.py', 'a') as file:
        file.write(f'cpu_channels_last = {channels_last}\n')
    status, stderr = train('term', 2)
    assert status == 2 and 'Traceback' not in stderr
    message = stderr[stderr.rindex('error: '):]
    assert 'loss_global = inf at epoch 1, iteration 2 (step 2 of the run)' in message
    assert 'loss_cls' not in message and 'loss_soft' not in message
    path = folder / 'work' / 'not_finite_epoch_1_iter_2_rank_0.safetensors'
    assert str(path) in message and not list((folder / 'work').glob('epoch*'))
    # The proposals are sampled at random: only the same random numbers give the same losses.
    losses = KeptStep.load(path).losses
    torch.rand(5)
    again, origin = replay(load_config('distiller.py'), str(path))
    assert origin.startswith('All losses are finite here')  # it was the hook's
    assert losses.keys() == again.keys() and len(again) > 6
    for name, value in again.items():
        if name not in ('loss', 'loss_global'):
            assert value == losses[name]
    status, printed, _ = run_tool('replay', 'distiller.py', path)
    assert status == 0 and f'loss_soft               {losses["loss_soft"]}' in printed


@pytest.mark.slow
@pytest.mark.parametrize('student, forgotten', [
    (small.libra_rcnn(), dict(counts=None)), (yolox(), dict(counts=None)), (tood(), dict(epoch=0)),
], ids=['sampler', 'sizes', 'epoch'])
def test_what_heads_count_is_kept_with_the_step(folder, student, forgotten):
    """By then YOLOX has drawn another size of images, Libra R-CNN and TOOD's first steps are over.
    """
    append('distiller.py', f'model["student"] = dict(config={student!r})')
    hooks = ', dict(type="SetEpochInfoHook")' * (student['type'] == 'TOOD')
    status, _ = train('term', 6, hooks=hooks)
    assert status == 2
    path = str(next((folder / 'work').glob('not_finite*')))
    step = KeptStep.load(path)
    again, _ = replay(load_config('distiller.py'), path)
    for name in again.keys() - {'loss', 'loss_global'}:
        assert again[name] == step.losses[name], name

    vars(step).update(forgotten)  # as of a former release
    step.save(path)
    former, _ = replay(load_config('distiller.py'), path)
    assert former['loss_cls'] != again['loss_cls']


def test_boxes_are_kept_as_they_were_before_the_step():
    """YOLOX scales them in place."""
    hook, boxes = FiniteLossHook(), torch.ones(1, 4)
    hook.before_train_iter(SimpleNamespace(
        model=nn.Linear(1, 1), data_batch=dict(gt_bboxes=DataContainer([[boxes]]))))
    boxes *= 2
    assert hook.boxes['gt_bboxes'].data[0][0].tolist() == [[1.0] * 4]


def test_skipped_steps_leave_no_trace(folder):
    status, stderr = train('image', 2, 7, skip=2)
    assert status == 0 and 'Skipped 1 of at most 2' in stderr and 'Skipped 2 of' in stderr
    assert 'loss_cls = nan' in stderr
    for epoch in (1, 2):
        state = torch.load(folder / 'work' / f'epoch_{epoch}.pth')['state_dict']
        assert all(tensor.isfinite().all() for tensor in state.values())
    # Six steps of eight have counted.
    assert state['student.backbone.bn1.num_batches_tracked'] == 6
    paths = list((folder / 'work').glob('not_finite*'))
    assert len(paths) == 2
    for path in paths:
        assert replay(load_config('distiller.py'), str(path))[1] == \
            'Not finite in the step itself: batch/img.'


def test_skipping_has_a_limit(folder):
    status, stderr = train('image', 2, 3, 4, skip=2)
    assert status == 2 and 'The run ends after 2 skipped steps' in stderr


def test_weights_that_are_not_finite_are_not_saved(folder):
    status, stderr = train('weight', 8)
    assert status == 2 and '1 weights are not finite any more, first student.' in stderr
    assert sorted(path.name for path in (folder / 'work').glob('*.pth')) == \
        ['epoch_1.pth', 'latest.pth']
    assert (folder / 'work' / 'latest.pth').resolve().name == 'epoch_1.pth'
