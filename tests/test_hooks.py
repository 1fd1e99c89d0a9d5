"""Hooks that touch the model: to them a distiller is its student, and a run resumes with them."""

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.distillers import assert_same_state
from helpers.refusals import append, train
from helpers.running import run_tool, succeed
from mmcv import Config
from mmcv.runner import HOOKS, Hook
from mmdet.models import build_detector

from gkd.running import load_config
from gkd.running.data import build_checked_dataset
from gkd.running.hooks import checkpoint_config
from gkd.running.train import initial_model

EMA = dict(type='EMAHook', momentum=0.1)


def state(path):
    return torch.load(path)['state_dict']


@pytest.mark.parametrize('hook', [EMA, dict(type='ExpMomentumEMAHook', momentum=0.1)])
def test_a_run_with_averages_goes_on_exactly(folder, hook):
    append('distiller.py', f'custom_hooks = [{hook!r}]\ncheckpoint_config["inside_epoch"] = 1')
    train('--epochs', '2')
    whole = state('work/epoch_2.pth')
    averages = {name for name in whole if name.startswith('ema_')}
    assert averages
    # The checkpoint has the averages for its weights, and keeps what is trained beside them.
    assert not torch.equal(whole['student.neck.lateral_convs.0.conv.weight'],
                           whole['ema_student_neck_lateral_convs_0_conv_weight'])
    (folder / 'work').rename(folder / 'before')
    train('--epochs', '1')
    train('--epochs', '2')
    assert_same_state(state('work/epoch_2.pth'), whole)
    succeed('test', 'distiller.py', 'work/epoch_2.pth')
    succeed('export_student', 'distiller.py', 'work/epoch_2.pth', 'student.pth')
    assert not [name for name in state('student.pth') if name.startswith('ema_')]


@HOOKS.register_module()
class Kill(Hook):
    """Ends a run after a step, and counts steps."""

    def __init__(self, step=0):
        self.step, self.count = step, 0

    def after_train_iter(self, runner):
        """Count; end."""
        self.count += 1
        if runner.iter + 1 == self.step:
            raise KeyboardInterrupt

    def state_dict(self):
        """What is kept."""
        return dict(count=self.count)

    def load_state_dict(self, kept):
        """Go on counting."""
        self.count = kept['count']


@pytest.mark.parametrize('step', [3, 4])
def test_averages_and_states_inside_an_epoch(folder, step):
    append('distiller.py', f'custom_hooks = [dict(type="Kill", priority=45), {EMA!r}]\n'
                           f'checkpoint_config["inside_epoch"] = 1')
    train('--epochs', '2')
    whole = torch.load('work/epoch_2.pth')
    assert whole['meta']['resume']['hooks'] == dict(Kill=dict(count=4))
    (folder / 'work').rename(folder / 'before')
    status, *_ = run_tool('train', 'distiller.py', '--work-dir', 'work', '--epochs', '2',
                          '--cfg-options', f'custom_hooks.0.step={step}')
    assert status == 130
    # Killed after the step and before its checkpoint: it is done once more. The checkpoint before
    # the third step is that of an epoch, the one before the fourth is inside of one.
    assert len(list((folder / 'work').glob('epoch_2_iter_*.pth'))) == step - 3
    train('--epochs', '2')
    resumed = torch.load('work/epoch_2.pth')
    assert not list((folder / 'work').glob('epoch_*_iter_*.pth'))
    assert_same_state(resumed['state_dict'], whole['state_dict'])
    assert resumed['meta']['resume']['hooks'] == dict(Kill=dict(count=4))


def test_a_plain_detector_with_averages_is_tested_and_exported(folder):
    append('student.py', f'custom_hooks = [{EMA!r}]')
    succeed('train', 'student.py', '--work-dir', 'work', '--epochs', '1')
    succeed('test', 'student.py', 'work/latest.pth')
    succeed('export_student', 'student.py', 'work/latest.pth', 'plain.pth')
    averaged = state('work/latest.pth')
    assert_same_state(state('plain.pth'), {name: tensor for name, tensor in averaged.items()
                                           if not name.startswith('ema_')})
    # It serves as a checkpoint to start from, too.
    append('distiller.py', 'model["student"]["checkpoint"] = "work/latest.pth"')
    succeed('train', 'distiller.py', '--work-dir', 'next', '--epochs', '1', '--no-validate')


def test_averages_are_dropped_with_a_word_where_the_hook_is_gone(folder):
    append('distiller.py', f'custom_hooks = [{EMA!r}]')
    train('--epochs', '1')
    append('distiller.py', 'custom_hooks = []')
    assert '`custom_hooks` has no such hook' in train('--epochs', '2')


def test_to_hooks_the_distiller_is_its_student():
    model = build_detector(Config(dict(model=small.distiller(
        small.retinanet(24), small.retinanet()))).model)
    assert model.bbox_head is model.student.bbox_head and model.with_neck
    assert not hasattr(model, 'roi_head')
    model.bbox_head.use_l1 = True
    assert model.student.bbox_head.use_l1
    # What both have is the distiller's.
    assert model.teacher is not model.student and model.bank is None
    with pytest.raises(AttributeError, match="'RetinaNet' object has no attribute 'tail'"):
        _ = model.tail
    assert {name.split('.')[0] for name in model.state_dict()} <= {'student', 'knowledge'}


MODE = dict(type='YOLOXModeSwitchHook', num_last_epochs=2, skip_type_keys=('CutOut',))


def test_yolox_switches_its_mode_late_in_a_run_and_after_a_resume(folder):
    # The hook wants the wrapper that mixes images.
    train_pipeline, _ = tiny_data.pipelines()
    train_pipeline.insert(2, dict(type='CutOut', n_holes=2, cutout_shape=(8, 8)))
    append('distiller.py', f'''
data["train"] = dict(type="MultiImageMixDataset", dataset=dict(
    data["train"], pipeline=data["train"]["pipeline"][:2]),
    pipeline={train_pipeline[2:]!r}, skip_type_keys=None)
custom_hooks = [{MODE!r}]''')
    seen = []

    @HOOKS.register_module(force=True)
    class WatchMode(Hook):
        """See what the model and the data do in an epoch."""

        def after_train_epoch(self, runner):
            """Note both."""
            head = runner.model.module.student.bbox_head
            seen.append((runner.epoch + 1, getattr(head, 'use_l1', False),
                         runner.data_loader.dataset._skip_type_keys))

    append('distiller.py', 'custom_hooks.append(dict(type="WatchMode"))')
    args = '--no-validate', '--epochs', '4'
    train(*args)
    whole, final = list(seen), state('work/latest.pth')
    assert [entry[1] for entry in whole] == [False, True, True, True]
    for name in ('epoch_3.pth', 'epoch_4.pth', 'latest.pth'):
        (folder / 'work' / name).unlink()
    (folder / 'work/latest.pth').symlink_to('epoch_2.pth')
    seen.clear()
    train(*args)
    assert seen == whole[2:]
    assert_same_state(state('work/latest.pth'), final)


def test_a_hook_of_ones_own_may_write_the_checkpoints():
    config = Config(dict(runner=dict(type='EpochBasedRunner'), checkpoint_config=dict(interval=2)))
    assert checkpoint_config(config) == dict(type='ResumableCheckpointHook', interval=2)
    config.checkpoint_config.type = 'Mine'
    assert checkpoint_config(config) == dict(type='Mine', interval=2)


def test_a_distiller_gets_one_hook_that_generates_prototypes(folder):
    """Also where the config names it, as the one that a work dir keeps does."""
    config = load_config('distiller.py')
    train_set = build_checked_dataset(config.data.train, 'data.train')
    for _ in range(2):
        initial_model(config, train_set)
        assert [hook['type'] for hook in config.custom_hooks] == ['PrototypeHook']
