"""What a run of MMEngine that goes on puts back, seen with a model of one weight."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from small_experiments import detector, experiment
from test_engine import Line
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gkd.bank import PrototypeBank
from gkd.engine import resume
from gkd.engine.evaluation import keep_metrics
from gkd.engine.resume import BatchOrder, ResumableCheckpointHook
from gkd.engine.runner import Runner
from gkd.errors import ConfigError
from gkd.randomness import random_state
from gkd.resume import KEY

IMAGES = 8


class Numbers(Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Steps(Hook):
    """Note the runner, and the learning rate and momentum of each step; end it after so many."""

    priority = 'LOWEST'  # after the checkpoint of the step

    def __init__(self, stop=None):
        self.stop = stop
        self.rates = []

    def before_train(self, runner):
        self.runner = runner

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        group = runner.optim_wrapper.param_groups[0]
        self.rates.append((group['lr'], group['momentum']))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.stop:
            raise InterruptedError


def run(folder, batch_size=1, stop=None, epochs=2, accumulated=1, schedules=None, seed=0,
        loop=None, **checkpoints):
    """Train, or go on; what the steps show."""
    steps = Steps(stop)
    runner = Runner(
        Line(), str(folder), resume=True, default_scope='mmengine', custom_hooks=[steps],
        train_dataloader=dict(batch_size=batch_size, num_workers=0, dataset=Numbers(),
                              sampler=dict(type='DefaultSampler', shuffle=True),
                              collate_fn=dict(type='pseudo_collate')),
        train_cfg=loop or dict(by_epoch=True, max_epochs=epochs), param_scheduler=schedules,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9),
                           accumulative_counts=accumulated),
        default_hooks=dict(checkpoint={'type': 'ResumableCheckpointHook', 'interval': 1,
                                        **checkpoints}),
        randomness=dict(seed=seed), log_level='ERROR')
    try:
        runner.train()
    except InterruptedError:
        pass
    return steps


WARM_UP = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
           dict(type='MultiStepLR', milestones=[1, 2], gamma=0.5, by_epoch=True),
           dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, begin=1, end=12)]
ONE_STEP = [dict(type='MultiStepLR', milestones=[2], by_epoch=True)]
COSINE = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=3, convert_to_iter_based=True)]


@pytest.mark.parametrize('former, batch_size', [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize('done, schedules', [
    (0.5, WARM_UP), (1.25, WARM_UP), (1.25, ONE_STEP), (1.25, COSINE),
    (1.25, [*COSINE, *ONE_STEP])])
def test_rates_are_those_of_the_place_where_a_run_goes_on(
        tmp_path, former, batch_size, done, schedules):
    """With other batches, too; within the warm-up and after it, whatever it had come to."""
    settings = dict(epochs=3, schedules=schedules)
    run(tmp_path / 'killed', former, stop=int(done * IMAGES // former), inside_epoch=1, **settings)
    rates = run(tmp_path / 'killed', batch_size, **settings).rates
    expected = run(tmp_path / 'anew', batch_size, **settings).rates
    assert 0 < len(rates) < len(expected) == 3 * IMAGES // batch_size
    for found, wanted in zip(rates[::-1], expected[::-1]):
        assert found == pytest.approx(wanted)


def test_a_schedule_that_waits_for_metrics_cannot_go_through_the_training_once_more(tmp_path):
    waiting = dict(type='ReduceOnPlateauLR', monitor='loss')
    for schedules in ([waiting], [waiting, *WARM_UP]):
        run(tmp_path / str(len(schedules)), stop=4, inside_epoch=1, schedules=schedules)
    assert len(run(tmp_path / '1', batch_size=2, schedules=[waiting]).rates) == 6
    with pytest.raises(ConfigError, match='has ReduceOnPlateauLR, .* beside schedules that count'):
        run(tmp_path / '4', batch_size=2, schedules=[waiting, *WARM_UP])


@pytest.mark.parametrize('settings, expected', [
    (dict(inside_epoch=3), ['epoch_1_iter_3', 'epoch_1_iter_6', 'epoch_1',
                            'epoch_2_iter_3', 'epoch_2_iter_6', 'epoch_2']),
    # That of the epoch takes the place of one that would be due at its end, or soon after.
    (dict(inside_epoch=8), ['epoch_1', 'epoch_2']),
    (dict(inside_epoch=4), ['epoch_1_iter_4', 'epoch_1', 'epoch_2_iter_4', 'epoch_2']),
    # It waits for the optimiser's step: until then it would have to hold the gradients, too.
    (dict(inside_epoch=3, accumulated=2), ['epoch_1_iter_4', 'epoch_1_iter_6', 'epoch_1',
                                           'epoch_2_iter_4', 'epoch_2_iter_6', 'epoch_2']),
    (dict(inside_epoch=7, accumulated=2), ['epoch_1', 'epoch_2']),
    (dict(inside_epoch=0), ['epoch_1', 'epoch_2']),
    # Where iterations are counted, those inside epochs are, too.
    (dict(loop=dict(type='IterationTrainLoop', max_iters=11), by_epoch=False, interval=4,
          inside_epoch=3),
     ['epoch_1_iter_3', 'iter_4', 'epoch_1_iter_6', 'iter_8', 'epoch_2_iter_1', 'iter_11']),
    (dict(loop=dict(type='IterationTrainLoop', max_iters=10), by_epoch=False, interval=5,
          inside_epoch=4), ['epoch_1_iter_4', 'iter_5', 'epoch_1_iter_8', 'iter_10'])])
def test_checkpoints_are_written_once_and_where_the_optimiser_has_made_a_step(
        tmp_path, monkeypatch, settings, expected):
    written, write = [], Runner.save_checkpoint

    def save(runner, folder, name, *args, **others):
        written.append(name)
        write(runner, folder, name, *args, **others)

    monkeypatch.setattr(Runner, 'save_checkpoint', save)
    run(tmp_path, **settings)
    assert written == [f'{name}.pth' for name in expected]


@pytest.mark.parametrize('done, ended', [(3, dict(stop=3)), (8, dict(epochs=1)),
                                         (11, dict(stop=11))])
def test_a_run_goes_on_after_the_last_step_that_was_kept(
        tmp_path, monkeypatch, done, ended):
    """An evaluation may only have been interrupted between two epochs."""
    run(tmp_path, inside_epoch=1, **ended)
    asked = []
    monkeypatch.setattr(resume, 'is_evaluation_missing', lambda *given: asked.append(given))
    assert len(run(tmp_path, inside_epoch=1).rates) == 2 * IMAGES - done
    assert len(asked) == (done == IMAGES)


def test_checkpoints_inside_epochs_are_removed_where_they_are(tmp_path):
    run(tmp_path / 'run', stop=6, inside_epoch=1, out_dir=str(tmp_path / 'elsewhere'))
    assert {path.name for path in tmp_path.rglob('*.pth')} == {
        'epoch_1_iter_5.pth', 'epoch_1_iter_6.pth'}
    run(tmp_path / 'run', inside_epoch=1, out_dir=str(tmp_path / 'elsewhere'))
    assert {path.name for path in tmp_path.rglob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}


@pytest.mark.parametrize('done', [0, 1])
def test_each_process_goes_on_with_its_own_random_numbers_and_gradients(done):
    """In an epoch they are those of the next batch, whatever hooks have drawn before it."""
    loader = DataLoader(range(4), batch_size=2)
    states, expected = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(random_state())
        expected.append(torch.rand(2).tolist())
    hook, model = ResumableCheckpointHook(), Line()
    gradients = [{'layer.weight': torch.full((1, 1), float(rank))} for rank in range(2)]
    hook.order = BatchOrder(loader, seed=0)
    hook.restore(SimpleNamespace(model=model, hooks=[], rank=1, world_size=2,
                                 train_dataloader=loader, logger=logging.getLogger()),
                 dict(batches=done, length=2, bank=None, random=states, gradients=gradients))
    assert model.layer.weight.grad == 1 and model.layer.bias.grad is None
    drawn = [torch.rand(1).item()]
    next(iter(loader))
    drawn += torch.rand(2 - len(drawn) + done).tolist()
    assert drawn[done:] == expected[1]


def restored(**state):
    """The order of the images, and the model, of a run with two batches that goes on."""
    loader = DataLoader(range(4), batch_size=2)
    hook, model = ResumableCheckpointHook(), Line()
    hook.order = BatchOrder(loader, seed=0)
    hook.restore(SimpleNamespace(model=model, hooks=[], rank=0, world_size=1, epoch=0, iter=0,
                                 param_schedulers=[], train_dataloader=loader,
                                 logger=logging.getLogger()),
                 dict(dict(batches=1, length=2, bank=None, random=[random_state()]), **state))
    return hook.order, model


def test_random_numbers_are_put_back_for_one_epoch_alone():
    order, _ = restored()
    assert len([*order]) == 1
    drawn = torch.rand(3)
    assert len([*order]) == 2
    assert (torch.rand(3) != drawn).all()


@pytest.mark.parametrize('other', [dict(length=4), dict(random=[None, None])])
def test_gradients_of_other_batches_are_not_put_back(other):
    """Those of another number of images, or of other processes."""
    gradients = [{'layer.weight': torch.ones(1, 1)}]
    for state, expected in ({}, torch.ones(1, 1)), (other, None):
        _, model = restored(gradients=gradients, **state)
        assert model.layer.weight.grad == expected


def test_a_checkpoint_is_of_all_processes(monkeypatch):
    """Of their statistics, those of the first one; averaged weights have some, too."""
    shared = []
    monkeypatch.setattr(resume.dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(resume.dist, 'broadcast', lambda *given: shared.append(given))
    monkeypatch.setattr(resume, 'all_gather', lambda own: [own, own])
    model, average = nn.BatchNorm1d(2), EMAHook()
    average.ema_model = nn.BatchNorm1d(2)
    model.weight.grad = torch.ones(2)
    model.bank = PrototypeBank([torch.rand(2, 3)], [torch.rand(2, 4)], [torch.tensor([0, 2])], {})
    average.state_dict = lambda: dict(seen=7)
    state = resume.training_state(SimpleNamespace(
        model=model, hooks=[average], train_dataloader=DataLoader(range(4)),
        optim_wrapper=SimpleNamespace(should_update=lambda: False)), batches=1)
    assert all(len(state[name]) == 2 for name in ('random', 'modules', 'gradients'))
    assert [*state['gradients'][1]] == ['weight'] and state['hooks'] == dict(EMAHook=dict(seen=7))
    assert torch.equal(PrototypeBank.from_state_dict(state['bank']).student[0],
                       model.bank.student[0])
    expected = [*model.buffers(), *average.ema_model.buffers()]
    assert len(expected) == 6 and all(source == 0 for _, source in shared)
    assert [id(buffer) for buffer, _ in shared] == [*map(id, expected)]


def test_a_checkpoint_that_others_write_holds_no_state_of_an_earlier_one():
    """Such as that of the best epoch."""
    hook, own, others = ResumableCheckpointHook(), {}, {}
    hook.state = dict(batches=1)
    for checkpoint in (own, others):
        hook.before_save_checkpoint(None, checkpoint)
    assert own == {KEY: dict(batches=1)} and others == {}


def test_epochs_augment_the_same_images_differently():
    hook, seeds = ResumableCheckpointHook(), set()
    hook.order = BatchOrder(DataLoader(TensorDataset(torch.arange(4)), num_workers=1), seed=0)
    for epoch in range(2):
        hook.before_train_epoch(SimpleNamespace(epoch=epoch))
        seeds.update(index.seed for batch in hook.order for index in batch)
    assert len(seeds) == 8


def test_loaders_take_no_random_number_of_the_training(annotations, tmp_path):
    """A run that goes on starts others."""
    config = experiment(annotations, tmp_path)
    config.model, config.custom_hooks = detector('one_stage'), []
    runner = Runner.from_cfg(config)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner._val_loop = runner.build_val_loop(runner._val_loop)
    for hook in runner.hooks:
        if isinstance(hook, ResumableCheckpointHook):
            hook.before_train(runner)
    before = torch.get_rng_state()
    for loop in (runner.train_loop, runner.val_loop):
        iter(loop.dataloader)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_run_augments_by_its_own_seed(tmp_path):
    for seed in (3, 5):
        hooks = run(tmp_path / str(seed), stop=1, seed=seed).runner.hooks
        order, = (hook.order for hook in hooks if isinstance(hook, ResumableCheckpointHook))
        assert order.seed == seed


def test_metrics_are_kept_once_and_as_numbers(tmp_path):
    loop = SimpleNamespace(epoch=1, max_epochs=2)
    for rank in (1, 0):
        assert not (tmp_path / 'evaluation.json').exists()
        keep_metrics(SimpleNamespace(rank=rank, work_dir=str(tmp_path), train_loop=loop),
                     {'coco/bbox_mAP': np.float32(0.5), 'coco/table': [0.5], 'none': None})
    assert json.loads((tmp_path / 'evaluation.json').read_text()) == {'1': {'bbox_mAP': 0.5}}


def test_metrics_are_kept_of_a_training_alone(annotations, tmp_path):
    """Else who evaluates a start would be thought to have trained from there."""
    config = experiment(annotations, tmp_path)
    config.model, config.custom_hooks = detector('one_stage'), []
    assert 'coco/bbox_mAP' in Runner.from_cfg(config).val()
    assert not (tmp_path / 'evaluation.json').exists()
