"""What a training starts or goes on from, and for how long it runs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from test_engine import Line, Numbers

from gkd.commands.options import replace_epochs
from gkd.engine.commands import choose_start
from gkd.engine.config import load_config
from gkd.engine.runner import Runner
from gkd.errors import CheckpointError, ConfigError


@pytest.fixture
def config(tmp_path):
    return Config(dict(work_dir=str(tmp_path), resume=False, load_from='start.pth'))


def start(config, resume):
    choose_start(config, resume)
    return config.resume, config.load_from


def test_a_training_goes_on_from_its_work_dir_before_all_else(config, tmp_path):
    assert start(config, 'auto') == (False, 'start.pth')
    config.resume = True  # MMEngine goes on from `load_from` then
    assert start(config, 'auto') == (True, 'start.pth')
    (tmp_path / 'epoch_1.pth').touch()
    assert start(config, 'auto') == (True, None)
    assert start(config, 'never') == (False, None)


def test_a_training_that_is_begun_anew_keeps_its_weights_to_start_from(config, tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    assert start(config, 'never') == (False, 'start.pth')


def test_a_named_checkpoint(config, tmp_path):
    (tmp_path / 'mine.pth').touch()
    assert start(config, str(tmp_path / 'mine.pth')) == (True, str(tmp_path / 'mine.pth'))
    with pytest.raises(CheckpointError, match='^--resume: no such checkpoint: gone.pth$'):
        choose_start(config, 'gone.pth')
    (tmp_path / 'epoch_2.pth').touch()
    with pytest.raises(CheckpointError, match='--resume: .* is a folder; .*/epoch_2.pth'):
        choose_start(config, str(tmp_path))


def test_a_setting_below_one_that_has_no_keys(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('model = train_dataloader = dict(a=1)\noptim_wrapper = dict(clip_grad=None)\n')
    with pytest.raises(ConfigError, match='optim_wrapper.clip_grad is None in the config'):
        load_config(str(path), {'optim_wrapper.clip_grad.max_norm': 35})
    config = load_config(str(path), {'optim_wrapper.clip_grad._delete_': True,
                                     'optim_wrapper.clip_grad.max_norm': 35})
    assert config.optim_wrapper.clip_grad == dict(max_norm=35)
    with pytest.raises(ConfigError, match='^optim_wrapper.clip_grad = 35: must be a dict'):
        load_config(str(path), {'optim_wrapper.clip_grad': 35})
    with pytest.raises(ConfigError, match='has no `model`'):
        load_config(str(path), {'model': None})


def test_iterations_are_not_counted_in_epochs():
    config = Config(dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=9)))
    with pytest.raises(ConfigError, match='--epochs: .*counts iterations.*train_cfg.max_iters'):
        replace_epochs(config, 3)
    config.train_cfg = dict(by_epoch=True, max_epochs=9)
    replace_epochs(config, 3)
    assert config.train_cfg.max_epochs == 3


def make(folder, epochs, resume=True, **settings):
    """A runner that trains a line, or goes on training it."""
    loader = dict(batch_size=2, num_workers=0, dataset=Numbers(),
                  sampler=dict(type='DefaultSampler', shuffle=False),
                  collate_fn=dict(type='pseudo_collate'))
    return Runner(Line(), str(folder), train_dataloader=loader,
                  train_cfg=dict(by_epoch=True, max_epochs=epochs),
                  optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
                  log_level='INFO', resume=resume,
                  cfg=Config(dict(train_cfg=dict(max_epochs=epochs))), **settings)


def run(folder, epochs, **settings):
    """The runner, after the training."""
    runner = make(folder, epochs, **settings)
    runner.train()
    return runner


def log_of(runner):
    return ''.join(path.read_text() for path in Path(runner.log_dir).glob('*.log'))


def test_a_folder_that_was_moved_or_damaged_is_gone_on_in(tmp_path):
    run(tmp_path / 'first', 2)
    shutil.move(tmp_path / 'first', tmp_path / 'moved')
    assert 'is trained for 2 epochs already' in log_of(run(tmp_path / 'moved', 2))
    newest = tmp_path / 'moved' / 'epoch_2.pth'
    newest.write_bytes(newest.read_bytes()[:100])
    runner = run(tmp_path / 'moved', 3)
    log = log_of(runner)
    # Runners of one second share a file.
    before, _, after = log.partition('Looking for the one before it')
    assert 'epoch_2.pth cannot be read' in before and 'already' not in after
    assert runner.iter == 6 and 'resumed epoch: 1, iter: 2' in after
    assert torch.load(newest, weights_only=False)['meta']['epoch'] == 2  # written again
    for number in (1, 2, 3):
        (tmp_path / 'moved' / f'epoch_{number}.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='no checkpoint in .*moved can be read'):
        run(tmp_path / 'moved', 4)


def test_a_named_checkpoint_is_gone_on_from_whatever_the_work_dir_holds(tmp_path):
    run(tmp_path, 3)
    runner = run(tmp_path, 3, load_from=str(tmp_path / 'epoch_1.pth'))
    assert 'resumed epoch: 1, iter: 2' in log_of(runner)


def test_a_folder_whose_checkpoints_are_gone_is_begun_in_anew(tmp_path):
    """MMEngine would look for the one that `last_checkpoint` names."""
    run(tmp_path, 1)
    (tmp_path / 'epoch_1.pth').unlink()
    assert (tmp_path / 'last_checkpoint').exists()
    assert run(tmp_path, 1).iter == 2


def test_all_processes_go_on_from_what_the_first_one_has_found(tmp_path, monkeypatch):
    run(tmp_path, 2)
    monkeypatch.setattr('gkd.engine.runner.all_gather', lambda own: [
        (True, str(tmp_path / 'epoch_1.pth')) if isinstance(own, tuple) else own, own])
    assert 'resumed epoch: 1, iter: 2' in log_of(run(tmp_path, 2))


def test_a_process_that_finds_something_else_does_as_the_first_one(tmp_path, monkeypatch):
    """Another may see the work dir a little later, or a machine not at all."""
    runner = run(tmp_path, 1)
    runner._has_loaded, runner._resume, runner._load_from = False, False, None
    monkeypatch.setattr('gkd.engine.runner.all_gather', lambda own: [(True, 'first.pth'), own])
    with pytest.raises(CheckpointError, match='no such checkpoint: first.pth'):
        runner.load_or_resume()
    monkeypatch.setattr('gkd.engine.runner.all_gather', lambda own: [(False, None), own])
    runner._resume, runner._load_from = True, 'own.pth'
    runner.load_or_resume()
    assert runner._load_from is None and not runner._has_loaded


@pytest.mark.parametrize('settings', [dict(resume=True), dict(resume=False, load_from='gone.pth')])
def test_a_detector_that_is_tested_keeps_the_weights_that_were_loaded(tmp_path, settings):
    """Also if the config says where a training starts, or the work dir is damaged."""
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'epoch_1.pth').write_bytes(b'')
    trained = Line()
    torch.save(trained.state_dict(), tmp_path / 'mine.pth')
    runner = make(tmp_path / 'work', 1, **settings)
    runner.load_detector(str(tmp_path / 'mine.pth'))
    runner.load_or_resume()
    assert torch.equal(runner.model.layer.weight, trained.layer.weight)


def test_folders_that_another_process_has_made_are_removed_if_the_run_is_refused(
        tmp_path, monkeypatch):
    work_dir = tmp_path / 'work_dirs' / 'run'
    work_dir.mkdir(parents=True)  # by the second process, before the first one looked
    made = [str(work_dir), str(work_dir.parent)]
    monkeypatch.setattr('gkd.engine.runner.all_gather', lambda own: [own, made])
    with pytest.raises(ConfigError, match='NoSuchHook'):
        make(work_dir, 1, custom_hooks=[dict(type='NoSuchHook')])
    assert not [*tmp_path.iterdir()]


def test_deterministic_kernels_do_not_need_a_seed(tmp_path, monkeypatch):
    """MMEngine's own runner fails without one."""
    asked = []
    monkeypatch.setattr(torch, 'use_deterministic_algorithms', asked.append)
    monkeypatch.setattr(torch.backends, 'cudnn', SimpleNamespace(benchmark=False, enabled=True))
    runners = [make(tmp_path / name, 1, randomness=dict(deterministic=True)) for name in 'ab']
    assert asked == [True, True] and runners[0].deterministic
    assert runners[0].seed != runners[1].seed
