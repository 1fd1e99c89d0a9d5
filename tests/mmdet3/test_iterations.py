"""Trainings that count iterations: their epochs are passes through the data set."""

import json
from itertools import islice
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from small_experiments import counting_iterations, detector, experiment, train
from torch.utils.data import BatchSampler, DataLoader

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.engine import loop
from gkd.engine import report as report_of_engine
from gkd.engine.export import export_student
from gkd.engine.runner import Runner
from gkd.frameworks import build_detector
from gkd.report.figures import draw_ap, draw_losses, draw_weights
from gkd.report.page import ap_table, state
from gkd.report.runs import read_runs
from gkd.report.summary import format_summary


@HOOKS.register_module()
class Watch(Hook):
    """Remember of every step what the tests look at, and end the run after so many."""

    seen = []

    def __init__(self, until=None):
        self.until = until

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        assert runner.model.training  # after an evaluation, too
        images = [sample.img_id for sample in data_batch['data_samples']]
        self.seen.append((runner.iter + 1, runner.epoch, runner.model.progress, images,
                          outputs['loss'].item()))
        if runner.iter + 1 == self.until:
            raise InterruptedError


def watched(config, until=None, **settings):
    """What the steps of a training show; it may be interrupted."""
    Watch.seen.clear()
    watch = dict(type='Watch', until=until, priority=100)  # after the checkpoints are written
    try:
        train(config, custom_hooks=[*config.custom_hooks, watch], **settings)
    except InterruptedError:
        pass
    return [*Watch.seen]


@pytest.mark.slow
@pytest.mark.parametrize('sampler, stops', [
    ('InfiniteSampler', (3, 5)), ('DefaultSampler', (4, 5))])
def test_a_killed_run_goes_on_exactly(annotations, tmp_path, sampler, stops):
    """In the middle of a pass, at its end, and where an evaluation in one was interrupted."""
    def of(folder):
        config = counting_iterations(
            experiment(annotations, tmp_path / folder, inside_epoch=1), sampler=sampler)
        # As long as nothing is found, the first evaluation is the best.
        config.default_hooks.checkpoint.update(save_best='coco/bbox_mAP', rule='less')
        return config

    whole = watched(of('whole'))
    assert [step[:3] for step in whole] == [
        (number + 1, number // 3, number // 3 * 3 / 8) for number in range(8)]
    if sampler == 'DefaultSampler':
        # In endless batches of images of one shape, an image may slip into the next pass.
        assert all(sorted(sum((step[3] for step in whole[first:first + 3]), [])) == [*range(1, 7)]
                   for first in (0, 3))
    seen = []
    for until in (*stops, None):
        seen += watched(of('killed'), until, resume=True)
    assert seen == whole
    one, other = (load_checkpoint_file(tmp_path / folder / 'iter_8.pth')['state_dict']
                  for folder in ('whole', 'killed'))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    found = [json.loads((tmp_path / folder / 'evaluation.json').read_text())
             for folder in ('whole', 'killed')]
    assert found[0] == found[1] and [*found[0]] == ['4', '8']
    for folder in ('whole', 'killed'):
        assert {path.name for path in tmp_path.glob(f'{folder}/*.pth')} == {
            *(f'iter_{number}.pth' for number in (2, 4, 6, 8)), 'best_coco_bbox_mAP_iter_4.pth'}
        assert {path.name for path in tmp_path.glob(f'{folder}/prototypes/epoch_*')} == {
            f'epoch_{number}.safetensors' for number in (1, 2, 3)}


@pytest.mark.slow
def test_with_another_batch_size_iterations_go_on_and_passes_are_counted_anew(
        annotations, tmp_path):
    """Seven batches of two are two passes and a batch; with one image each, a pass and a batch."""
    config = counting_iterations(experiment(annotations, tmp_path), max_iters=12, interval=1)
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    watched(config, until=7)
    config.train_dataloader.batch_size = 1
    assert [step[:3] for step in watched(config, resume=True)] == [
        (number, 1, 0.5) for number in range(8, 13)]


@pytest.mark.parametrize('done', [0, 1, 2])
def test_passes_take_the_batches_of_an_endless_sampler_one_after_the_other(done):
    """Those of a run that goes on, too: it leaves out as many passes as it has done."""
    def batches(numbers):
        loader = DataLoader(range(6), batch_sampler=BatchSampler(
            InfiniteSampler(range(6), seed=0), 2, drop_last=False))
        passes = loop.Passes(SimpleNamespace(dataloader=loader))
        for passes.loop.epoch in numbers:
            yield [*passes]

    assert [*batches(range(done, 4))] == [*batches(range(4))][done:]
    drawn = InfiniteSampler(range(6), seed=0)
    assert sum(sum(batches(range(4)), []), []) == [*islice(drawn, 24)]


def test_the_commands_count_passes_of_all_processes(annotations, tmp_path, monkeypatch):
    """And take the loop that counts them for MMEngine's."""
    config = counting_iterations(experiment(annotations, tmp_path))
    monkeypatch.setattr(loop, 'get_world_size', lambda: 2)
    for train_cfg in (dict(type='IterBasedTrainLoop', max_iters=5), dict(by_epoch=False,
                                                                         max_iters=5)):
        config.train_cfg = train_cfg
        built = Runner.with_checked_data(config, 'train').train_loop
        assert (type(built), len(built.dataloader)) == (loop.IterationTrainLoop, 2)
        assert (built.max_epochs, built.max_iters) == (3, 5)


def test_a_student_that_is_taught_nothing_needs_no_hook(annotations, tmp_path):
    """As the plain student of a comparison."""
    config = experiment(annotations, tmp_path)
    config.model.knowledge, config.custom_hooks = [], []
    assert Runner.with_checked_data(config, 'train').train_loop.max_epochs == 2


class FewSteps:
    """As much of a runner as a loop needs; it notes evaluations, and may stop the loop."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.done, self.evaluated, self.epochs = 0, [], 0
        self.model, self.val_loop, self.optim_wrapper = self, self, None

    def call_hook(self, name, **settings):
        self.epochs += name == 'after_train_epoch'

    def train(self):
        pass

    def train_step(self, batch, optim_wrapper):
        self.done += 1
        self.loop.stop_training = self.done == self.stop_after

    def run(self):
        self.evaluated.append(self.done)


@pytest.mark.parametrize('stop_after, settings, evaluated, epochs', [
    (None, dict(max_iters=7, val_interval=3), [3, 6, 7], 3),
    (None, dict(max_iters=6, val_interval=4), [4, 6], 2),
    (None, dict(max_iters=8, val_interval=2, val_begin=4), [4, 6, 8], 3),
    (None, dict(max_iters=8, val_interval=2, dynamic_intervals=[(4, 3)]), [2, 3, 6, 8], 3),
    (4, dict(max_iters=8, val_interval=2), [2, 4], 2)])
def test_evaluates_and_stops_as_mmengines_loop_does(stop_after, settings, evaluated, epochs):
    """Passes have three steps."""
    for kind in (loop.IterationTrainLoop, IterBasedTrainLoop):
        runner = FewSteps(stop_after)
        runner.loop = kind(runner, DataLoader(range(3)), **settings)
        runner.loop.run()
        assert runner.evaluated == evaluated
        assert runner.loop.iter == runner.done == (stop_after or settings['max_iters'])
        assert runner.epochs == (epochs if kind is loop.IterationTrainLoop else 1)


@pytest.mark.slow
def test_the_report_and_the_student(annotations, tmp_path, monkeypatch):
    """Beside a training that counts epochs, of three steps each."""
    config = counting_iterations(experiment(annotations, tmp_path / 'steps',
                                            hooks=[dict(type='ReportHook')]))
    monkeypatch.setattr(report_of_engine, 'subprocess', SimpleNamespace(
        run=lambda *_, **__: SimpleNamespace(returncode=0)))  # importing what draws takes long
    train(config)
    train(config, resume=True)  # nothing is left to do, and nothing is forgotten
    train(experiment(annotations, tmp_path / 'epochs'))
    run, runs = read_runs(str(tmp_path / 'steps'), [str(tmp_path / 'epochs')])
    assert state(run) == 'trained for 8 steps'
    assert [row['last'] for row in ap_table(runs, {each.name: {} for each in runs})
            ] == [8 if each is run else 'epoch 2' for each in runs]
    summary = format_summary(run.work_dir, 'config.py')
    assert 'last, step 8' in summary and 'training:   8 steps' in summary
    assert f'{tmp_path}/steps/iter_8.pth' in summary
    other = next(each for each in runs if each is not run)
    places = {line.name: line.x for line in draw_ap(runs).data}
    assert places == {run.name: (4, 8), other.name: (3, 6)}
    drawn = draw_losses(runs)['loss_global']
    assert drawn.layout.xaxis.title.text == 'step'
    places = {line.name: line.x for line in drawn.data}
    assert places[run.name] == tuple(range(1, 9)) and places[other.name] == tuple(range(1, 7))
    assert [line.y for line in drawn.data if line.name == 'decay'] == [(1, 0.625, 0.25, 0)]
    assert next(iter(draw_weights(run).values())).data[0].x == (1, 2, 3)
    student = str(tmp_path / 'student.pth')
    export_student(config, f'{run.work_dir}/iter_8.pth', student)
    plain = build_detector(Config(detector('one_stage')))
    plain.load_state_dict(load_checkpoint_file(student)['state_dict'], strict=True)


def evaluations(stops=None, **settings):
    """After which of seven iterations it is evaluated, and the loop; three are a pass."""
    runner, found = Mock(), []

    def evaluate():
        found.append(training.iter)
        training.stop_training = training.iter == stops  # as an EarlyStoppingHook does

    runner.val_loop.run = evaluate
    training = loop.IterationTrainLoop(runner, DataLoader(range(3)), max_iters=7, **settings)
    training.run()
    return found, training


@pytest.mark.parametrize('settings, expected', [
    (dict(val_interval=2), [2, 4, 6, 7]), (dict(val_interval=2, val_begin=4), [4, 6, 7]),
    (dict(val_interval=3, dynamic_intervals=[(6, 1)]), [3, 5, 6, 7])])
def test_evaluations_are_where_mmengine_has_them(settings, expected):
    assert evaluations(**settings)[0] == expected


def test_nothing_is_evaluated_before_the_first_step():
    training = loop.IterationTrainLoop(Mock(), DataLoader(range(3)), max_iters=7, val_begin=0)
    assert not loop.is_evaluated(training)
    training._iter = 7
    assert loop.is_evaluated(training)


@pytest.mark.parametrize('stops', [2, 3, 4])
def test_a_training_that_learns_no_more_ends_with_its_evaluation(stops):
    found, training = evaluations(stops, val_interval=1)
    assert found == [*range(1, stops + 1)] and training.iter == stops
    assert [call.args[0] for call in training.runner.call_hook.call_args_list][-2:] == [
        'after_train_epoch', 'after_train']
