"""A run that is refused before it has started leaves nothing behind."""

import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import IterBasedTrainLoop
from small_experiments import TOOLS, detector, experiment

from gkd.commands import run
from gkd.engine.refusal import remove_traces
from gkd.engine.runner import Runner
from gkd.errors import CheckpointError, ConfigError, StorageError
from gkd.frameworks import build_detector


@pytest.fixture
def config(annotations, tmp_path, monkeypatch):
    """A config that trains in a folder whose parent is not there either."""
    monkeypatch.chdir(tmp_path)
    return experiment(annotations, tmp_path / 'work_dirs' / 'run')


def write_weights(path, channels):
    torch.save(build_detector(detector('one_stage', channels)).state_dict(), path)
    return str(path)


def a_pair_that_a_method_refuses(config):
    config.model.teacher = dict(config=detector('two_stage', 24), checkpoint=None)
    config.model.knowledge = [dict(type='GID')]


def another_student(config):
    config.model.student = dict(config=detector('one_stage'),
                                checkpoint=write_weights('other.pth', 24))


def another_start(config):
    config.load_from = write_weights('other.pth', 16)


def no_start(config):
    config.load_from = 'gone.pth'


def a_folder_to_start_from(config):
    config.load_from = config.train_dataloader.dataset.data_prefix.img


def a_folder_for_a_teacher(config):
    config.model.teacher = dict(config=detector('one_stage', 24),
                                checkpoint=config.train_dataloader.dataset.data_prefix.img)


def no_such_hook(config):
    config.custom_hooks.append(dict(type='NoSuchHook'))


def a_misspelt_default_hook(config):
    config.default_hooks.checkpont = dict(interval=2)


def no_such_setting_of_a_loader(config):
    """Of the loader, which the training loop makes; not of the loop."""
    config.train_dataloader.batchsize = 2


def no_such_schedule(config):
    config.param_scheduler[0].speed = 3


def other_classes(config):
    config.train_dataloader.dataset.metainfo.classes = ['red', 'green']


def a_misspelt_setting_of_checkpoints(config):
    config.default_hooks.checkpoint.intervall = 3


def no_hook_that_generates_prototypes(config):
    config.custom_hooks = []


def no_hook_that_counts_the_decay(config):
    config.custom_hooks = []
    config.model.knowledge = [dict(type='RKD')]


def prototypes_of_a_plain_detector(config):
    config.model = detector('one_stage')


def a_preprocessor_beside_the_model(config):
    config.data_preprocessor = dict(type='DetDataPreprocessor')


def no_epoch(config):
    config.train_cfg.max_epochs = 0


def checkpoints_of_epochs(config):
    config.train_cfg = dict(by_epoch=False, max_iters=4)


def checkpoints_of_iterations(config):
    config.default_hooks.checkpoint.by_epoch = False


def an_endless_epoch(config):
    config.train_dataloader.sampler.type = 'InfiniteSampler'


@LOOPS.register_module()
class OwnLoop(IterBasedTrainLoop):
    """Knows no epochs."""


def a_loop_without_epochs(config):
    config.train_cfg = dict(type='OwnLoop', max_iters=4)


def half_an_iteration(config):
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4.5)


def no_training_data(config):
    config.train_dataloader = None


def half_an_evaluation(config):
    config.val_dataloader = None


def evaluations_that_never_come(config):
    config.train_cfg.val_interval = 0


def checkpoints_now_and_then(config):
    config.default_hooks.checkpoint.interval = 'often'


def checkpoints_where_nothing_can_be_written(config):
    config.default_hooks.checkpoint.out_dir = __file__


def a_rate_scaled_from_nothing(config):
    config.auto_scale_lr = dict(enable=True)


def a_distiller_that_is_compiled(config):
    config.compile = True


def a_seed_in_words(config):
    config.randomness.seed = '3'


def a_flag_for_a_seed(config):
    config.randomness.seed = True


def randomness_that_does_not_exist(config):
    config.randomness.speed = 3


REFUSED = [
    (a_misspelt_setting_of_checkpoints, 'default_hooks.checkpoint has unknown settings intervall'),
    (no_hook_that_generates_prototypes, 'custom_hooks has no PrototypeHook'),
    (no_hook_that_counts_the_decay, 'custom_hooks has no PrototypeHook'),
    (prototypes_of_a_plain_detector, 'PrototypeHook, which serves a Distiller, but .* RetinaNet'),
    (a_preprocessor_beside_the_model, '`data_preprocessor` belongs .*: set it to None'),
    (no_epoch, 'train_cfg = .*: must train for at least one epoch'),
    (checkpoints_of_epochs, 'by_epoch = True, and train_cfg counts iterations: .*False'),
    (checkpoints_of_iterations, 'by_epoch = False, and train_cfg counts epochs: .*True'),
    (an_endless_epoch, 'train_dataloader.sampler is an InfiniteSampler'),
    (a_loop_without_epochs, 'train_cfg.type = OwnLoop: the decay of distillation is counted in'),
    (half_an_iteration, 'train_cfg.max_iters = 4.5: must be a whole number'),
    (evaluations_that_never_come, 'train_cfg.val_interval = 0: must be a whole number from 1'),
    (checkpoints_now_and_then, "default_hooks.checkpoint.interval = 'often': must be a whole"),
    (checkpoints_where_nothing_can_be_written, 'test_refusal.py/.* cannot be written'),
    (a_rate_scaled_from_nothing, r'Add auto_scale_lr = dict\(enable=True, base_batch_size=16\)'),
    (a_distiller_that_is_compiled, 'compile = True: every step .* compile every step anew'),
    (a_seed_in_words, "randomness.seed = '3': must be an integer from 0 to"),
    (a_flag_for_a_seed, 'randomness.seed = True: must be an integer from 0 to'),
    (randomness_that_does_not_exist, 'randomness: TypeError: .*speed'),
    (no_training_data, 'config .* has no `train_dataloader`'),
    (half_an_evaluation, 'belong together, and it has no val_dataloader. Give all of them, or'),
    (a_pair_that_a_method_refuses, 'GID: a two-stage teacher'),
    (another_student, 'other.pth does not fit the RetinaNet'),
    (another_start, 'Name it as `model.student.checkpoint`'),
    (no_start, 'load_from: no such checkpoint: gone.pth'),
    (a_folder_to_start_from, 'load_from: .* is a folder; name the checkpoint'),
    (a_folder_for_a_teacher, 'model.teacher.checkpoint: .* is a folder; name the checkpoint'),
    (no_such_hook, 'default_hooks or custom_hooks: KeyError.*NoSuchHook'),
    (a_misspelt_default_hook,
     r"default_hooks.checkpont = {'interval': 2} has no `type`. Did you mean checkpoint\?"),
    (no_such_setting_of_a_loader,
     "train_dataloader or train_cfg: TypeError: .* argument 'batchsize'"),
    (no_such_schedule, "param_scheduler: LinearLR has no setting 'speed'; it takes "),
    (other_classes, 'RetinaNet detects 3 classes')]


@pytest.mark.parametrize('change, says', REFUSED, ids=[each.__name__ for each, _ in REFUSED])
def test_a_refused_training_leaves_nothing(config, tmp_path, change, says):
    change(config)
    before = set(tmp_path.rglob('*'))
    with pytest.raises((ConfigError, CheckpointError, StorageError), match=says):
        Runner.with_checked_data(config, 'train', 'val').train()
    assert set(tmp_path.rglob('*')) == before


def test_a_work_dir_that_cannot_be_made(config, tmp_path):
    (tmp_path / 'file').touch()
    config.work_dir = str(tmp_path / 'file' / 'run')
    with pytest.raises(StorageError, match='file/run cannot be written: .*name another folder'):
        Runner.with_checked_data(config, 'train')


def test_what_was_there_before_stays(config, tmp_path):
    work_dir = tmp_path / 'work_dirs' / 'run'
    (work_dir / '20200101_000000').mkdir(parents=True)
    config.dump(tmp_path / 'config.py')
    kept = {work_dir / 'config.py': 'of another run',
            work_dir / '20200101_000000' / 'a.log': 'log'}
    for path, text in kept.items():
        path.write_text(text)
    before = set(tmp_path.rglob('*'))
    config = config.fromfile(tmp_path / 'config.py')
    config.train_dataloader.dataset.metainfo.classes = ['red', 'green']
    with pytest.raises(ConfigError, match='detects 3 classes'):
        Runner.with_checked_data(config, 'train')
    assert set(tmp_path.rglob('*')) == before
    assert {path: path.read_text() for path in kept} == kept


def test_a_refused_test_leaves_nothing(config, tmp_path, monkeypatch, capsys):
    config.update(test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
                  test_evaluator=config.val_evaluator)
    config.visualizer = dict(type='DetLocalVisualizer', vis_backends=[
        dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
    config.dump('tested.py')
    write_weights('other.pth', 24)
    monkeypatch.setattr(sys, 'argv', ['test.py', 'tested.py', 'other.pth'])
    before = set(tmp_path.rglob('*'))
    with pytest.raises(SystemExit) as ended:
        run(runpy.run_path(str(TOOLS / 'test.py'))['main'])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith('\nerror: other.pth does not fit the RetinaNet')
    assert set(tmp_path.rglob('*')) == before


@HOOKS.register_module()
class Refuse(Hook):
    def before_test(self, runner):
        raise ConfigError('not like this')


def test_a_test_that_a_hook_refuses_leaves_nothing(config, tmp_path):
    config.update(test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
                  test_evaluator=config.val_evaluator)
    config.custom_hooks.append(dict(type='Refuse'))
    with pytest.raises(ConfigError, match='not like this'):
        Runner.with_checked_data(config, 'test').test()
    assert not [*tmp_path.iterdir()]


def test_a_test_without_a_checkpoint_ends_before_its_data_are_read(config, tmp_path, monkeypatch,
                                                                    capsys):
    config.test_dataloader = config.val_dataloader
    config.test_dataloader.dataset.ann_file = 'gone.json'
    config.dump('tested.py')
    monkeypatch.setattr(sys, 'argv', ['test.py', 'tested.py', str(tmp_path)])
    with pytest.raises(SystemExit):
        run(runpy.run_path(str(TOOLS / 'test.py'))['main'])
    assert 'is a folder; name the checkpoint in it' in capsys.readouterr().err


def test_a_checkpoint_that_is_missing_is_told_before_data_are_read(config):
    config.model.teacher.checkpoint = 'gone.pth'
    config.train_dataloader.dataset.ann_file = 'gone.json'
    with pytest.raises(CheckpointError, match='model.teacher.checkpoint: .*gone.pth'):
        Runner.with_checked_data(config, 'train')


@HOOKS.register_module()
class FailLater(Hook):
    def before_train_epoch(self, runner):
        raise InterruptedError

    def before_test_epoch(self, runner):
        raise InterruptedError


def test_a_training_that_has_started_keeps_its_log_and_config(config, tmp_path):
    config.custom_hooks.append(dict(type='FailLater'))
    config.dump(tmp_path / 'started.py')
    config = config.fromfile(tmp_path / 'started.py')
    runner = Runner.with_checked_data(config, 'train')
    work_dir = tmp_path / 'work_dirs' / 'run'
    assert not (work_dir / 'started.py').exists()
    with pytest.raises(InterruptedError):
        runner.train()
    assert 'Distiller' in (work_dir / 'started.py').read_text()
    assert list(work_dir.glob('*/*.log'))


def test_a_test_that_has_started_keeps_its_log(config, tmp_path):
    config.update(test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
                  test_evaluator=config.val_evaluator)
    config.custom_hooks.append(dict(type='FailLater'))
    runner = Runner.with_checked_data(config, 'test')
    with pytest.raises(InterruptedError):
        runner.test()
    assert list(tmp_path.glob('work_dirs/run/*/*.log'))


def test_a_test_does_not_replace_the_config_that_a_training_has_kept(config, tmp_path):
    """It is that of the student alone."""
    kept = tmp_path / 'work_dirs' / 'run' / 'run.py'
    kept.parent.mkdir(parents=True)
    config.update(test_dataloader=config.val_dataloader, test_cfg=dict(type='TestLoop'),
                  test_evaluator=config.val_evaluator, custom_hooks=[])
    config.dump(kept)
    before = kept.read_text()
    tested = Config.fromfile(kept)
    tested.model = detector('one_stage')
    Runner.with_checked_data(tested, 'test').test()
    assert kept.read_text() == before and list(kept.parent.glob('*/*.log'))


def test_a_work_dir_of_another_detector_is_named(config):
    Runner.with_checked_data(config, 'train').train()
    config.model.student = dict(config=detector('one_stage', 8))
    config.resume = True
    with pytest.raises(CheckpointError, match='in the work dir(.|\n)*--resume never'):
        Runner.with_checked_data(config, 'train').train()


def test_a_work_dir_that_cannot_be_made_is_named(config, tmp_path):
    (tmp_path / 'file').write_text('')
    config.work_dir = str(tmp_path / 'file' / 'work')
    with pytest.raises(StorageError, match='file/work cannot be written: Not a directory'):
        Runner.with_checked_data(config, 'train')


def test_what_others_have_written_meanwhile_stays(tmp_path):
    for name in ('work', 'other'):
        (tmp_path / name).mkdir()
    (tmp_path / 'work' / 'theirs.txt').touch()
    remove_traces(SimpleNamespace(), [str(tmp_path / name) for name in ('work', 'other')])
    assert [path.name for path in tmp_path.rglob('*')] == ['work', 'theirs.txt']
