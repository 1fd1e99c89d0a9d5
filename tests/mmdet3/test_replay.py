"""Steps whose loss is not finite: kept as each process saw them, run again, skipped."""

import math
import os
import runpy
import sys
from types import SimpleNamespace

import cv2
import pytest
import torch
import torch.multiprocessing
from helpers import small_detectors as small
from helpers.zoo_detectors import tood
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from small_experiments import CLASSES, PREPROCESSOR, TOOLS, detector, experiment, train

from gkd.engine.finite import FiniteLossHook
from gkd.errors import NumericalError
from gkd.finite.step import KeptStep
from gkd.frameworks import build_detector
from gkd.looking.door import load_config
from gkd.looking.replay import layers_not_finite, replay
from gkd.looking.replay import origin as origin_of


@HOOKS.register_module()
class Poison(Hook):
    """Spoil something at given steps of the run, from 1, in one process.

    ``'image'``, or ``'term'``, which is the global knowledge.
    """

    priority = 'VERY_HIGH'

    def __init__(self, steps, what, rank=0):
        self.steps = steps
        self.what = what
        self.rank = rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 not in self.steps or runner.rank != self.rank:
            return
        if self.what == 'image':
            data_batch['inputs'][0] = torch.full_like(data_batch['inputs'][0].float(), math.nan)
        else:
            runner.model.knowledge[0].global_knowledge.loss_weight = math.inf


def poisoned(annotations, folder, what, *steps, family='one_stage', skip=0, rank=0, **settings):
    """A config whose run meets losses that are not finite; the teacher has a checkpoint."""
    config = experiment(annotations, folder / 'work', family, **settings)
    teacher = build_detector(Config(detector(family, 24)))
    folder.mkdir(exist_ok=True)
    torch.save(dict(meta=dict(dataset_meta=dict(classes=CLASSES)),
                    state_dict=teacher.state_dict()), folder / 'teacher.pth')
    config.model.teacher.checkpoint = str(folder / 'teacher.pth')
    config.dump(folder / 'config.py')
    config.custom_hooks = [
        dict(type='PrototypeHook'), dict(type='FiniteLossHook', skip=skip),
        dict(type='Poison', steps=steps, what=what, rank=rank)]
    return config


def test_the_term_is_named_and_the_step_can_be_run_again(annotations, tmp_path, monkeypatch,
                                                         capsys):
    config = poisoned(annotations, tmp_path, 'term', 2, family='two_stage')
    with pytest.raises(NumericalError) as ended:
        train(config)
    message = str(ended.value)
    assert message.startswith('loss_global = inf at epoch 1, iteration 2 (step 2 of the run). ')
    path = tmp_path / 'work' / 'not_finite_epoch_1_iter_2_rank_0.safetensors'
    assert f'python tools/replay.py CONFIG {path}' in message
    assert 'optim_wrapper.clip_grad' in message
    # The proposals are sampled at random: only the same random numbers give the same losses.
    losses = KeptStep.load(path).losses
    torch.rand(5)
    again, origin = replay(load_config(str(tmp_path / 'config.py')), str(path))
    assert losses.keys() == again.keys() and len(again) > 6
    for name, value in again.items():
        assert name in ('loss', 'loss_global') or value == losses[name]
    assert origin.startswith('All losses are finite here')  # it was the hook's
    monkeypatch.setattr(sys, 'argv', ['replay.py', str(tmp_path / 'config.py'), str(path)])
    capsys.readouterr()
    runpy.run_path(str(TOOLS.parent / 'replay.py'))['main']()
    printed = capsys.readouterr().out
    assert f'loss_soft               {losses["loss_soft"]}\n' in printed and origin in printed


@pytest.mark.slow
@pytest.mark.parametrize('student, forgotten', [
    (dict(small.libra_rcnn(), data_preprocessor=PREPROCESSOR), dict(counts=None)),
    (tood(), dict(epoch=0))], ids=['sampler', 'epoch'])
def test_what_heads_count_is_kept_with_the_step(annotations, tmp_path, student, forgotten):
    """By then the first steps of Libra R-CNN and of TOOD are over."""
    config = poisoned(annotations, tmp_path, 'term', 5)
    config.model.student.config = student
    config.dump(tmp_path / 'config.py')
    with pytest.raises(NumericalError):
        train(config)
    config = load_config(str(tmp_path / 'config.py'))
    path = str(next((tmp_path / 'work').glob('not_finite*')))
    step = KeptStep.load(path)
    again, _ = replay(config, path)
    for name in again.keys() - {'loss', 'loss_global'}:
        assert again[name] == step.losses[name], name
    vars(step).update(forgotten)  # as of a former release
    step.save(path)
    assert replay(config, path)[0]['loss_cls'] != again['loss_cls']


def test_skipped_steps_of_a_plain_detector_leave_no_trace(annotations, tmp_path):
    config = poisoned(annotations, tmp_path, 'image', 2, 5, skip=2)
    config.model = detector('one_stage')
    del config.custom_hooks[0]
    runner = train(config, val_dataloader=None, val_cfg=None, val_evaluator=None)
    weights = runner.model.state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert weights['backbone.bn1.num_batches_tracked'] == 4  # of six steps
    for name in ('epoch_1_iter_2', 'epoch_2_iter_2'):
        path = tmp_path / 'work' / f'not_finite_{name}_rank_0.safetensors'
        again, origin = replay(config, str(path))
        assert math.isnan(again['loss_cls']) and math.isnan(KeptStep.load(path).losses['loss_cls'])
        assert origin == 'Not finite in the step itself: batch/inputs.'


@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_the_first_layer_that_overflows_is_named(role):
    model = build_detector(Config(small.distiller(detector('one_stage'), detector('one_stage'))))
    getattr(model, role).neck.fpn_convs[1].conv.bias.data.fill_(math.inf)
    images = torch.ones(1, 3, 64, 64)
    with torch.no_grad(), layers_not_finite(model) as layers:
        model.student.extract_feat(images)
        model.teacher.extract_feat(images)
    assert layers[0] == f'{role}.neck.fpn_convs.1.conv' and f'{role}.neck' in layers
    with torch.no_grad():
        getattr(model, role).extract_feat(images)
    assert len(layers) == len(set(layers))  # it is watched no more


@pytest.mark.parametrize('given, layers, losses, said', [
    (['weights/a', 'batch/img'], ['a'], dict(loss=math.nan), 'itself: weights/a, batch/img.'),
    ([], ['neck.conv', 'neck'], dict(loss=math.nan), 'a value that is not finite: neck.conv.'),
    ([], [], dict(loss_a=math.inf, loss=math.inf, loss_b=1.0), 'not finite are loss_a, loss.'),
    ([], [], dict(loss=1.0), 'All losses are finite here')])
def test_where_it_begins(given, layers, losses, said):
    assert said in origin_of(given, layers, losses)


def test_skipping_has_a_limit(annotations, tmp_path):
    config = poisoned(annotations, tmp_path, 'image', 1, 2, skip=1)
    with pytest.raises(NumericalError, match='The run ends after 1 skipped steps'):
        train(config)


def end_in_process(rank, port, annotations, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    cv2.setNumThreads(0)  # thread pools do not survive a fork
    config = poisoned(annotations, folder / str(rank), 'image', 2, rank=1, launcher='pytorch')
    config.work_dir = str(folder)
    said = 'the loss of another process is not finite at' if rank == 0 else 'loss_cls = nan, '
    with pytest.raises(NumericalError, match=said):
        train(config)
    path = folder / f'not_finite_epoch_1_iter_2_rank_{rank}.safetensors'
    again, _ = replay(load_config(str(folder / str(rank) / 'config.py')), str(path))
    losses = KeptStep.load(path).losses
    assert math.isfinite(losses['loss']) == (rank == 0)
    assert [*again] == [*losses] and (rank == 1 or again == losses)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_every_process_keeps_its_own_step(annotations, tmp_path, free_port):
    torch.multiprocessing.start_processes(
        end_in_process, (free_port, annotations, tmp_path), nprocs=2, start_method='fork')


@pytest.mark.parametrize('loss', [torch.inf, -torch.inf, torch.nan, 1.0])
def test_no_loss_that_is_not_finite_is_passed_on(monkeypatch, loss):
    """And no batch is held longer than its step."""
    refused, passed, hook = [], [], FiniteLossHook()
    monkeypatch.setattr(hook, 'refuse', lambda *given: refused.append(given))
    model = torch.nn.Linear(1, 1)
    for mode in ('loss', 'predict'):
        hook.remember_batch(model, (), dict(inputs=mode, mode=mode))
    hook.losses = dict(loss=torch.tensor(loss))
    update = hook.guarded(SimpleNamespace(model=model, iter=7, epoch=2, train_dataloader=range(3)),
                          passed.append)
    update(torch.tensor(loss))
    assert not hook.batch
    if loss == 1:
        assert passed == [torch.tensor(1.0)] and not refused
    else:
        [(_, _, iteration, batch, losses)] = refused
        assert not passed and (iteration, batch) == (2, dict(inputs='loss'))
        assert str(losses) == str(dict(loss=loss))
