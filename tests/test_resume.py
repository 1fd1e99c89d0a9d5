"""Exact resume: which checkpoints stay, whose states fit, and which images come next."""

import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmcv import Config
from mmcv.runner import EMAHook, EpochBasedRunner, Hook
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gkd.bank import PrototypeBank
from gkd.commands.resume import intact_checkpoint
from gkd.compat.runner import EMA
from gkd.errors import CheckpointError, DataError, StorageError
from gkd.randomness import random_state
from gkd.resume import (
    KEY,
    evaluations,
    forget_evaluations,
    is_same_setup,
    keep_evaluation,
    remove_inside,
    restore_model,
    with_seeds,
)
from gkd.running.resume import (
    HookStates,
    ImageOrder,
    ResumableCheckpointHook,
    ResumeHook,
    find_checkpoint,
)
from gkd.running.train import prepare_work_dir
from gkd.work_dir import EVALUATION, checkpoints, last_whole_checkpoint


def write(folder, *names):
    """Write files one after the other."""
    for time, name in enumerate(names):
        (folder / name).touch()
        os.utime(folder / name, (time, time))


def test_what_was_written_last_stays(tmp_path):
    """A run that went back to epoch 2 finds checkpoints of epoch 4."""
    write(tmp_path, 'epoch_4_iter_2.pth', 'epoch_4_iter_4.pth', 'epoch_1.pth',
          'epoch_2_iter_8.pth', 'epoch_2_iter_10.pth', 'epoch_2_iter_mine.pth')
    remove_inside(tmp_path, keep=2)
    others = ['epoch_1.pth', 'epoch_2_iter_mine.pth']
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*others, 'epoch_2_iter_8.pth', 'epoch_2_iter_10.pth'])
    remove_inside(tmp_path, keep=3)
    assert len(os.listdir(tmp_path)) == 4
    remove_inside(tmp_path, keep=0)
    assert sorted(os.listdir(tmp_path)) == others


def test_seeds_are_of_the_run_the_process_and_the_epoch():
    seeds = [image.seed for image in with_seeds([5, 3, 5], 0, 0, 0)]
    assert len(set(seeds)) == 3 and with_seeds([5, 3, 5], 0, 0, 0) == [5, 3, 5]
    assert [image.seed for image in with_seeds([1, 2, 3, 4], 0, 0, 0)][:3] == seeds
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert [image.seed for image in with_seeds([5, 3, 5], *other)] != seeds


@pytest.mark.parametrize('processes, length, same', [(2, 10, True), (1, 10, False), (2, 9, False)])
def test_another_setup_is_warned_of(caplog, processes, length, same):
    state = dict(random=[{}, {}], length=10)
    assert is_same_setup(state, processes, length, logging.getLogger('test')) == same
    warning = f'is of 2 process(es) with 10 iterations per epoch, this run has {processes} with ' \
              f'{length}: it continues from there'
    assert (warning in caplog.text) != same


def test_each_process_gets_back_what_its_own_model_counted():
    """With more processes than before, the others begin with what one of them counted."""
    head = type('DDODHead', (nn.Linear,), {})
    state = dict(bank=None, modules=[{'0': dict(cls_num_pos_samples_per_level=[rank])}
                                     for rank in (7, 8)])
    for rank, counted in ((0, [7]), (1, [8]), (2, [7])):
        model = nn.Sequential(head(1, 1))
        model[0].cls_num_pos_samples_per_level = [0]
        restore_model(model, state, rank)
        assert model[0].cls_num_pos_samples_per_level == counted


def test_prototypes_come_back_with_the_model():
    bank = PrototypeBank([torch.rand(2, 3)], [torch.rand(2, 4)], [torch.tensor([0, 2])],
                         dict(epoch='3'))
    model = nn.Linear(1, 1)
    restore_model(model, dict(bank=bank.state_dict()), 0)
    assert torch.equal(model.bank.student[0], bank.student[0])
    assert model.bank.metadata == dict(epoch='3')
    model = nn.Linear(1, 1, device='meta')
    restore_model(model, dict(bank=bank.state_dict()), 0)
    assert model.bank.student[0].device == model.weight.device


def test_metrics_are_kept_of_the_epochs_that_a_run_has_done(tmp_path):
    """Those of later epochs, and of an evaluation that is repeated, are replaced."""
    folder = str(tmp_path)
    assert evaluations(folder, 9) == {}
    forget_evaluations(folder, 0)
    assert not os.listdir(tmp_path)  # nothing is there to forget
    for epoch in (1, 2, 3):
        keep_evaluation(folder, epoch, dict(AP=epoch / 10))
    assert evaluations(folder, 2) == {'1': dict(AP=0.1), '2': dict(AP=0.2)}
    forget_evaluations(folder, 2)
    assert [*evaluations(folder, 9)] == ['1', '2']
    keep_evaluation(folder, 1, dict(AR=0.5))
    assert evaluations(folder, 9) == {'1': dict(AR=0.5)}
    with mock.patch('os.fsync', side_effect=OSError('the disk is full')), \
            pytest.raises((OSError, StorageError)):
        keep_evaluation(folder, 2, dict(AR=0.6))
    assert evaluations(folder, 9) == {'1': dict(AR=0.5)}


def test_what_a_killed_run_has_left_unfinished_is_removed_by_the_first_process(tmp_path):
    (tmp_path / 'prototypes').mkdir()
    unfinished = [tmp_path / '.epoch_1.pth.12.tmp', tmp_path / 'prototypes/.1.safetensors.12.tmp']
    for path in (*unfinished, tmp_path / 'epoch_1.pth'):
        path.touch()
    for rank in (1, 0):
        assert all(path.exists() for path in unfinished)
        prepare_work_dir(SimpleNamespace(work_dir=str(tmp_path), rank=rank))
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['epoch_1.pth']


@pytest.mark.parametrize('content', ['{"1"', '[1]', '{"one": {}}', '{"1": 0.5}'])
def test_metrics_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / EVALUATION).write_text(content)
    with pytest.raises(DataError, match=f'{EVALUATION} does not hold metrics by epoch'):
        evaluations(str(tmp_path), 9)


def names(paths):
    return [os.path.basename(path) for path in paths]


@pytest.mark.parametrize('named, expected', [
    (None, ['epoch_3.pth', 'epoch_2_iter_4.pth', 'epoch_1.pth']),
    ('epoch_2_iter_4.pth', ['epoch_2_iter_4.pth', 'epoch_1.pth']),
    ('/former/place/epoch_2_iter_4.pth', ['epoch_2_iter_4.pth', 'epoch_1.pth']),
    ('/former/place/epoch_2.pth', ['epoch_2_iter_4.pth', 'epoch_1.pth']),
    ('', ['epoch_3.pth', 'epoch_2_iter_4.pth', 'epoch_1.pth'])])
def test_a_run_goes_on_from_what_it_names_as_its_last(tmp_path, named, expected):
    """Later checkpoints are of a run that was thrown away, MMEngine names the last by its path."""
    write(tmp_path, 'epoch_3.pth', 'epoch_1.pth', 'epoch_2_iter_4.pth', 'mine.pth')
    if named is not None:
        (tmp_path / 'last_checkpoint').write_text(named)
    assert names(checkpoints(str(tmp_path))) == expected
    whole = last_whole_checkpoint(str(tmp_path))
    assert os.path.basename(whole) == next(name for name in expected if 'iter' not in name)


def test_checkpoints_that_lie_elsewhere_are_found(tmp_path):
    for folder in ('work', 'store'):
        (tmp_path / folder).mkdir()
    write(tmp_path / 'store', 'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth')
    (tmp_path / 'work' / 'last_checkpoint').write_text(str(tmp_path / 'store' / 'epoch_2.pth'))
    assert checkpoints(str(tmp_path / 'work')) == [
        str(tmp_path / 'store' / f'epoch_{number}.pth') for number in (2, 1)]
    assert last_whole_checkpoint(str(tmp_path / 'work')) == str(tmp_path / 'store' / 'epoch_2.pth')


def test_the_newest_checkpoint_that_can_be_read(tmp_path):
    assert intact_checkpoint(str(tmp_path)) is None
    for number in (1, 2):
        torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / f'epoch_{number}.pth')
    assert intact_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    (tmp_path / 'epoch_2.pth').write_bytes(b'half')
    assert intact_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_1.pth').write_bytes(b'half')
    with pytest.raises(CheckpointError, match='epoch_2.pth, .*epoch_1.pth.*--resume never'):
        intact_checkpoint(str(tmp_path))


def test_a_run_goes_on_from_its_own_checkpoint_before_that_of_the_config(tmp_path):
    other = tmp_path / 'other.pth'
    other.touch()
    config = Config(dict(work_dir=str(tmp_path / 'work'), resume_from=str(other)))
    (tmp_path / 'work').mkdir()
    assert find_checkpoint('auto', config) == str(other)
    own = tmp_path / 'work' / 'epoch_1.pth'
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), own)
    assert find_checkpoint('auto', config) == str(own)
    assert find_checkpoint('never', config) is None
    assert find_checkpoint(str(other), config) == str(other)
    with pytest.raises(CheckpointError, match='--resume: .*nothing.pth'):
        find_checkpoint('nothing.pth', config)


def test_an_epoch_goes_on_with_the_next_batch():
    order = ImageOrder(DataLoader(TensorDataset(torch.arange(6)), batch_size=2), seed=0)
    order.skip = 2
    assert list(order) == [4, 5]


def test_each_process_goes_on_with_its_own_images_and_random_numbers():
    """In an epoch with those of the next batch, whatever hooks have drawn before it."""
    def order():
        return ImageOrder(DataLoader(TensorDataset(torch.arange(6)), 2, shuffle=True), seed=0)

    def go_on(**state):
        hook = ResumeHook(order())
        hook.state = dict(state, length=3)
        torch.manual_seed(9)
        hook.before_train_epoch(SimpleNamespace(
            epoch=0, rank=1, world_size=2, data_loader=range(3), logger=logging.getLogger()))
        return hook.order

    whole, other = order(), random_state()
    images = list(whole)
    torch.rand(3)  # in the first batch
    now = random_state()
    expected = torch.rand(2)
    going_on = go_on(batches=1, random=[other, now], epoch_start=[other, whole.start])
    torch.rand(3)
    assert list(going_on) == images[2:] and torch.equal(torch.rand(2), expected)
    assert torch.equal(going_on.start['torch'], whole.start['torch'])  # for the next checkpoint
    going_on.skip = 0  # the next epoch has an order of its own
    found = []
    for each in (going_on, order()):
        torch.manual_seed(5)
        found.append(list(each))
    assert found[0] == found[1] != images
    go_on(batches=0, random=[other, now], epoch_start=[None, None])
    assert torch.equal(torch.rand(2), expected)


def test_hooks_get_back_what_they_have_counted():
    class Counting(Hook):
        def load_state_dict(self, kept):
            self.count = kept

    hook, resume = Counting(), ResumeHook(ImageOrder(DataLoader(range(2)), seed=0))
    resume.state = dict(batches=1, hooks=dict(Counting=7))
    HookStates(resume).before_run(SimpleNamespace(meta={}, hooks=[hook]))
    assert hook.count == 7


def test_epochs_augment_the_same_images_differently():
    order = ImageOrder(DataLoader(TensorDataset(torch.arange(4)), num_workers=1), seed=0)
    seeds = set()
    for epoch in range(2):
        ResumeHook(order).before_train_epoch(SimpleNamespace(epoch=epoch))
        seeds.update(index.seed for index in order)
    assert len(seeds) == 8


def test_workers_take_no_random_number_of_the_training():
    loader = DataLoader(TensorDataset(torch.arange(4)), num_workers=1)
    ImageOrder(loader, seed=0)
    before = torch.get_rng_state()
    iter(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_augment_differently(monkeypatch):
    order = ImageOrder(DataLoader(TensorDataset(torch.arange(4)), num_workers=1), seed=0)
    seeds = set()
    for rank in range(2):
        monkeypatch.setattr('gkd.running.resume.get_dist_info', lambda rank=rank: (rank, 2))
        seeds.update(index.seed for index in order)
    assert len(seeds) == 8


class Steps(Hook):
    """Note the learning rate of each step, and where it is."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner):
        self.seen.append((*runner.current_lr(), runner.epoch, runner.iter, runner.inner_iter))


class Line(nn.Linear):
    def train_step(self, batch, optimizer):
        return dict(loss=self(batch.float()[:, None]).mean(), log_vars={}, num_samples=1)


def runner_of(loader, folder):
    """A runner that trains for two epochs."""
    model = Line(1, 1)
    runner = EpochBasedRunner(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                              work_dir=str(folder), logger=logging.getLogger(), max_epochs=2,
                              meta=dict(seed=3))
    runner.register_hook(ResumeHook(ImageOrder(loader, seed=0)))
    return runner


def steps(batch_size, folder, done=0.0, former=1):
    """Steps of two epochs of 8 images, or from where another batch size had come to."""
    loader = DataLoader(range(8), batch_size)
    runner = runner_of(loader, folder)
    if done:
        length = 8 // former
        runner._iter = int(done * length)
        runner._epoch, batches = divmod(runner.iter, length)
        runner.meta = {KEY: dict(batches=batches, length=length, bank=None,
                                 random=[random_state()], epoch_start=[random_state()])}
    noted = Steps()
    runner.register_lr_hook(dict(policy='CosineAnnealing', by_epoch=False, min_lr=0,
                                 warmup='linear', warmup_iters=6, warmup_ratio=0.1))
    runner.register_hook(noted, 'VERY_LOW')
    runner.run([loader], [('train', 1)])
    return noted.seen


@pytest.mark.parametrize('former, batch_size', [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize('done', [0.5, 1, 1.25])
def test_steps_are_those_of_the_place_where_a_run_goes_on(tmp_path, former, batch_size, done):
    """With other batches, too: schedules that go by iterations neither end early nor never."""
    assert steps(batch_size, tmp_path, done, former) == steps(
        batch_size, tmp_path)[int(done * 8) // batch_size:]


class Checkpoints(Hook):
    """Note the checkpoints that are written, by their names, as they are."""

    def __init__(self):
        self.seen = {}

    def after_train_iter(self, runner):
        for path in Path(runner.work_dir).glob('epoch_*.pth'):
            if path.stem not in self.seen:
                self.seen[path.stem] = torch.load(path)

    after_train_epoch = after_train_iter


@pytest.mark.parametrize('settings, expected', [
    (dict(interval=1, inside_epoch=3), ['epoch_1_iter_3', 'epoch_1_iter_6', 'epoch_1',
                                        'epoch_2_iter_3', 'epoch_2_iter_6', 'epoch_2']),
    (dict(interval=1, inside_epoch=8), ['epoch_1', 'epoch_2']),
    (dict(interval=5, by_epoch=False), ['epoch_1_iter_5', 'epoch_1',
                                        'epoch_2_iter_5', 'epoch_2'])])
def test_checkpoints_are_written_once_and_tell_what_is_done(tmp_path, settings, expected):
    """That of the epoch takes the place of those inside it, and of one that is due at its end."""
    loader, noted = DataLoader(range(8)), Checkpoints()
    runner = runner_of(loader, tmp_path)
    runner.register_hook(ResumableCheckpointHook(**settings))
    runner.register_hook(noted, 'LOWEST')
    runner.run([loader], [('train', 1)])
    assert [*noted.seen] == expected
    assert {path.stem for path in tmp_path.iterdir()} == {'epoch_1', 'epoch_2', 'latest'}
    for name, checkpoint in noted.seen.items():
        epoch, batches = (int(number) for number in re.findall(r'\d+', f'{name}_0')[:2])
        meta, inside = checkpoint['meta'], batches > 0
        assert (meta['epoch'], meta['seed']) == (epoch - inside, 3) and checkpoint['optimizer']
        assert meta['iter'] == (epoch - inside) * 8 + batches
        assert meta[KEY]['batches'] == batches and len(meta[KEY]['random']) == 1
        # With this the order of the running epoch's images is drawn again.
        assert (meta[KEY]['epoch_start'] != [None]) == inside
        assert meta[KEY]['averaged'] != inside  # averages are in the model between epochs


class Stop(Hook):
    def after_train_iter(self, runner):
        if runner.iter + 1 == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize('elsewhere, former', [(True, 'latest.pth'), (False, 'last_checkpoint')])
def test_a_checkpoint_inside_an_epoch_is_the_last_where_out_dir_has_changed(
        tmp_path, elsewhere, former):
    """The work dir no longer names the one that was written to the former place."""
    work = tmp_path / 'work'
    work.mkdir()
    if elsewhere:
        (work / former).symlink_to('epoch_1.pth')
    else:
        (work / former).write_text(str(tmp_path / 'store' / 'epoch_1.pth'))
    loader = DataLoader(range(8))
    runner = runner_of(loader, work)
    runner.register_hook(ResumableCheckpointHook(
        inside_epoch=3, out_dir=str(tmp_path / 'store') if elsewhere else None))
    runner.register_hook(Stop(), 'LOWEST')
    with pytest.raises(KeyboardInterrupt):
        runner.run([loader], [('train', 1)])
    assert not os.path.lexists(work / former)
    assert Path(checkpoints(str(work))[0]).resolve().name == 'epoch_1_iter_3.pth'


@pytest.mark.parametrize('state, averaged', [
    (dict(batches=3, averaged=False), False), (dict(batches=3, averaged=True), True),
    (dict(batches=0), True), (dict(batches=3), False)])  # of earlier releases
def test_averages_are_put_where_their_hook_expects_them(tmp_path, state, averaged):
    """At the beginning of an epoch it gives the model the weights that it keeps."""
    runner, hook = runner_of(DataLoader(range(8)), tmp_path), EMAHook()
    runner.register_hook(hook)
    hook.before_run(runner)
    runner.meta = {EMA: {name: torch.full_like(value, 7.0)
                         for name, value in hook.model_buffers.items() if 'weight' in name}}
    runner.model.weight.data.fill_(5.0)
    resume = ResumeHook(None)
    resume.state = state
    HookStates(resume).before_run(runner)
    hook.before_train_epoch(runner)
    assert runner.model.weight.item() == (7.0 if averaged else 5.0)
