"""Trainings that count iterations: their epochs are passes through the data set."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from small_experiments import counting_iterations, experiment, train

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.report.runs import read_run


@HOOKS.register_module()
class Watch(Hook):
    """Remember of every step what the tests look at, and end the run after so many."""

    seen = []

    def __init__(self, until=None):
        self.until = until

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
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
@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_a_killed_run_goes_on_exactly(annotations, tmp_path, sampler):
    """In the middle of a pass, at its end, and where an evaluation was interrupted."""
    def of(folder):
        return counting_iterations(experiment(annotations, tmp_path / folder), sampler=sampler,
                                   interval=1)

    whole = watched(of('whole'))
    assert [step[:2] for step in whole] == [(number, (number - 1) // 3) for number in range(1, 9)]
    assert [step[2] for step in whole] == [number // 3 * 3 / 8 for number in range(8)]
    for epoch in range(2):
        images = sum((step[3] for step in whole if step[1] == epoch), [])
        assert len(images) == 6
    assert len(whole) == 8
    seen = []
    for until in (2, 3, 5, None):
        seen += watched(of('killed'), until, resume=True)
    assert seen == whole
    for folder in ('whole', 'killed'):
        assert sorted(path.name for path in tmp_path.glob(f'{folder}/*.pth')) == [
            f'iter_{number}.pth' for number in range(1, 9)]
        assert sorted(path.name for path in tmp_path.glob(f'{folder}/prototypes/epoch_*')) == [
            f'epoch_{number}.safetensors' for number in (1, 2, 3)]
    one, other = (load_checkpoint_file(tmp_path / folder / 'iter_8.pth')['state_dict']
                  for folder in ('whole', 'killed'))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert [*read_run(str(tmp_path / 'killed')).evaluations] == [4, 8]
