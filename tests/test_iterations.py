"""Trainings that count iterations: their epochs are passes through the data set."""

import json
import logging

import pytest
import torch
from helpers.distillers import assert_same_state
from helpers.refusals import append, refuse_training, train
from helpers.running import run_tool, succeed
from mmcv import Config
from mmcv.runner import HOOKS, EpochBasedRunner, Hook
from torch import nn
from torch.utils.data import DataLoader

from gkd.compat.wrapper import unwrap
from gkd.report.figures import draw_ap, draw_losses, draw_weights
from gkd.report.runs import read_runs
from gkd.running.runner import IterationRunner, runner_type, trained

# Four images: two iterations are a pass.
ITERATIONS = '''
runner = dict(type='IterBasedRunner', max_iters=5)
evaluation.update(interval=3, save_best='bbox_mAP', rule='less')
checkpoint_config = dict(interval=3, inside_epoch=1)
lr_config = dict(policy='step', step=[4])
log_config['interval'] = 1
custom_hooks = [dict(type='Watch', priority=55)]
'''


@HOOKS.register_module()
class Watch(Hook):
    """Remember of every step what the tests look at, and end the run after so many."""

    seen = []

    def __init__(self, until=None):
        self.until = until

    def after_train_iter(self, runner):
        assert unwrap(runner.model).training  # after an evaluation, too
        images = [meta['ori_filename'] for meta in runner.data_batch['img_metas'].data[0]]
        self.seen.append((runner.iter + 1, runner.epoch, unwrap(runner.model).progress, images,
                          runner.current_lr(), runner.outputs['log_vars']['loss']))
        if runner.iter + 1 == self.until:
            raise KeyboardInterrupt


def watched(until=None):
    """What the steps of a training show; it may be interrupted."""
    Watch.seen.clear()
    status, *_ = run_tool('train', 'distiller.py', '--work-dir', 'work', '--cfg-options',
                          f'custom_hooks.0.until={until}')
    assert status == (130 if until else 0)
    return [*Watch.seen]


class Line(nn.Linear):
    def train_step(self, batch, optimizer):
        return dict(loss=self(batch.float()[:, None]).mean(), log_vars={}, num_samples=2)


class Note(Hook):
    """Note passes and steps; leave the model as an evaluation does, and save a checkpoint."""

    def __init__(self, save_after=None, **settings):
        self.save_after, self.settings = save_after, settings
        self.passes, self.steps, self.ended = [], [], 0

    def before_train_epoch(self, runner):
        self.passes.append((runner.epoch, runner.iter))

    def before_train_iter(self, runner):
        assert runner.model.training
        self.steps.append(runner.iter)

    def after_train_iter(self, runner):
        runner.model.eval()
        if runner.iter + 1 == self.save_after:
            runner.save_checkpoint(runner.work_dir, meta=dict(hook_msgs=dict(best=1)),
                                   **self.settings)

    def after_run(self, runner):
        self.ended += 1


def run_line(folder, note, go_on_from=None, max_iters=7):
    """Passes have three steps."""
    model = Line(1, 1)
    runner = IterationRunner(model, optimizer=torch.optim.SGD(model.parameters(), 0.1, 0.9),
                             work_dir=str(folder), logger=logging.getLogger(),
                             meta=dict(seed=3), max_iters=max_iters)
    if go_on_from:
        runner.resume(str(folder / go_on_from))
    runner.register_hook(note)
    runner.run([DataLoader(range(6), batch_size=2)], [('train', 1)])
    return runner


def test_passes_are_epochs_to_the_hooks_and_the_last_one_ends_early(tmp_path):
    note = Note()
    runner = run_line(tmp_path, note)
    assert note.passes == [(0, 0), (1, 3), (2, 6)] and note.steps == [*range(7)]
    assert (note.ended, runner.max_epochs, runner.epoch) == (1, 3, 3)
    assert trained(runner) == runner.iter == 7
    note = Note()
    assert run_line(tmp_path, note, max_iters=6).epoch == 2 and note.steps == [*range(6)]


def test_checkpoints_tell_what_is_done_and_are_gone_on_from(tmp_path):
    run_line(tmp_path, Note(save_after=3))
    kept = torch.load(tmp_path / 'iter_3.pth')
    assert {key: kept['meta'][key] for key in ('epoch', 'iter', 'seed', 'hook_msgs')} == dict(
        epoch=0, iter=3, seed=3, hook_msgs=dict(best=1))
    assert kept['optimizer']['param_groups'][0]['momentum'] == 0.9
    assert (tmp_path / 'latest.pth').resolve().name == 'iter_3.pth'
    note = Note(save_after=5, save_optimizer=False, create_symlink=False)
    runner = run_line(tmp_path, note, go_on_from='iter_3.pth')
    assert note.steps == [*range(3, 7)] and runner.meta['hook_msgs'] == dict(best=1)
    assert 'optimizer' not in torch.load(tmp_path / 'iter_5.pth')
    assert (tmp_path / 'latest.pth').resolve().name == 'iter_3.pth'


@pytest.mark.parametrize('given, used', [
    ('IterBasedRunner', IterationRunner), ('EpochBasedRunner', EpochBasedRunner),
    ('NoSuchRunner', None)])
def test_it_takes_the_place_of_mmcvs_runner(given, used):
    assert runner_type(Config(dict(runner=dict(type=given)))) is used


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(folder):
    """In a pass, at its end, and where an evaluation in the middle of one was interrupted."""
    append('distiller.py', ITERATIONS)
    whole = watched()
    assert [step[:3] for step in whole] == [
        (1, 0, 0), (2, 0, 0), (3, 1, 0.4), (4, 1, 0.4), (5, 2, 0.8)]
    assert all(len({*whole[first][3], *whole[first + 1][3]}) == 4 for first in (0, 2))
    assert whole[4][4][0] == pytest.approx(whole[3][4][0] / 10)
    (folder / 'work').rename(folder / 'whole')
    seen = []
    for until, left in ((1, ['epoch_1_iter_1.pth']),
                        (2, ['epoch_1_iter_1.pth', 'epoch_1_iter_2.pth']),
                        (3, ['iter_3.pth']), (None, ['iter_3.pth', 'iter_5.pth'])):
        seen += watched(until)
        assert sorted(path.name for path in (folder / 'work').glob('*iter_?.pth')
                      if 'best' not in path.name) == left
    assert seen == whole
    one, other = (torch.load(folder / name / 'iter_5.pth') for name in ('whole', 'work'))
    assert_same_state(one['state_dict'], other['state_dict'])
    assert (other['meta']['epoch'], other['meta']['iter']) == (2, 5)
    found = [json.loads((folder / name / 'evaluation.json').read_text())
             for name in ('whole', 'work')]
    assert found[0] == found[1] and [*found[0]] == ['3']
    for name in ('whole', 'work'):
        assert {path.name for path in (folder / name).glob('*.pth')} - {
            'best_bbox_mAP_iter_3.pth'} == {'iter_3.pth', 'iter_5.pth', 'latest.pth'}
        assert {path.name for path in (folder / name / 'prototypes').glob('epoch_*')} == {
            f'epoch_{number}.safetensors' for number in (1, 2, 3)}


@pytest.mark.slow
def test_the_report_and_the_student(folder):
    append('distiller.py', ITERATIONS)
    said = train('--cfg-options', 'evaluation.save_best=None')
    assert 'Iter [5/5]' in said and 'last, step 3' in said and 'training:   5 steps' in said
    assert 'latest.pth is trained for 5 iterations already' in train(
        '--cfg-options', 'evaluation.save_best=None')
    run, runs = read_runs('work')
    assert draw_ap(runs).data[0].x == (3,)
    drawn = {line.name: line for line in draw_losses(runs)['loss_global'].data}
    assert drawn[run.name].x == (1, 2, 3, 4, 5)
    assert drawn['decay'].x == (0, 2, 4, 5) and drawn['decay'].y == (1, 0.6, 1 - 4 / 5, 0)
    assert next(iter(draw_weights(run).values())).data[0].x == (1, 2, 3)
    report = (folder / 'work' / 'report.html').read_text()
    assert 'trained for 5 steps' in report and '<th>step</th>' in report
    succeed('test', 'distiller.py', 'work/iter_5.pth')
    succeed('export_student', 'distiller.py', 'work/latest.pth', 'student.pth')


@pytest.mark.slow
def test_with_another_batch_size_iterations_go_on_and_passes_are_counted_anew(folder):
    """Three batches of two images are a pass and a half; with one image each, no whole pass."""
    append('distiller.py', f'{ITERATIONS}\nrunner["max_iters"] = 6\ndel custom_hooks[:]\n'
                           f'evaluation["interval"] = 9\ncustom_hooks.append(dict(type="Watch"))')
    watched(until=3)
    append('distiller.py', 'data["samples_per_gpu"] = 1')
    assert [step[:3] for step in watched()] == [(4, 0, 0), (5, 1, 4 / 6), (6, 1, 4 / 6)]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['EMAHook', 'ExpMomentumEMAHook'])
def test_averages_are_evaluated_and_saved_as_those_of_epochs(folder, kind):
    """Also of a training that was interrupted twice: inside of a pass, and beside a checkpoint."""
    append('distiller.py', f'custom_hooks = [dict(type="Watch", priority=55), dict(type="{kind}", '
                           'momentum=0.1)]')
    train('--epochs', '2')
    whole = torch.load('work/epoch_2.pth')['state_dict']
    evaluated = json.loads((folder / 'work' / 'evaluation.json').read_text())['2']
    (folder / 'work').rename(folder / 'before')
    append('distiller.py', 'runner = dict(type="IterBasedRunner", max_iters=4)\n'
                           'evaluation["interval"] = 4\n'
                           'checkpoint_config = dict(interval=3, inside_epoch=1)')
    watched(until=1)
    watched(until=3)
    watched()
    assert_same_state(torch.load('work/iter_4.pth')['state_dict'], whole)
    assert json.loads((folder / 'work' / 'evaluation.json').read_text()) == {'4': evaluated}


@pytest.mark.parametrize('key', ['evaluation', 'checkpoint_config'])
def test_what_counts_epochs_beside_it_is_named(folder, key):
    append('distiller.py', ITERATIONS)
    refuse_training(folder, '--cfg-options', f'{key}.by_epoch=True', says=[
        f'{key}.by_epoch = True', 'counts iterations', 'set it to False'])
