"""Several processes: the same gradients, no stalling, errors that end all of them."""

import json
import os
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.parallel_steps import CPU, build, gradients, part_of
from helpers.running import REPOSITORY, in_processes, run_tool, torchrun

from gkd.running.device import wrap

TERMS = {'loss_global', 'loss_local_fg', 'loss_local_bg', 'loss_soft'}


@pytest.mark.parametrize('family, knowledge', [
    ('one_stage', dict(robust=False)),
    ('two_stage', dict(robust=False, instances='gt', soft_label=None)),
])
def test_two_processes_give_the_gradients_of_one(family, knowledge, tmp_path):
    """Exact where every mean has as many members in both halves of the batch.

    MMDetection normalises detection losses by the positives (or samples) of a process, and
    knowledge is a mean over a process's instances, so the mean over processes is the mean over the
    joined batch if both halves have equally many. Here the images differ and their boxes do not;
    batch normalisation has fixed statistics, sampling takes all, and robust weights, which change
    the number that local knowledge divides by, are left out.
    """
    data = small.batch(num_images=4)

    def model():
        return build(family, knowledge, take_all=family == 'two_stage')

    def half(rank):
        return gradients(wrap(model(), CPU),
                         part_of(data, slice(2 * rank, 2 * rank + 2)))

    expected_losses, expected = gradients(wrap(model(), CPU), data)
    # The halves alone teach something else.
    _, first = gradients(wrap(model(), CPU), part_of(data, slice(2)))
    far = [name for name, gradient in first.items()
           if (gradient - expected[name]).norm() > 0.02 * expected[name].norm()]
    assert len(far) > len(first) / 2
    halves = in_processes(tmp_path / 'group', half)
    assert TERMS & expected_losses.keys() == TERMS - ({'loss_soft'} if family == 'two_stage'
                                                      else set())
    for losses, found in halves:
        # MMDetection logs the mean over processes.
        assert losses == pytest.approx(expected_losses, rel=1e-4)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-8,
                                       msg=lambda message, name=name: f'{name}: {message}')


@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize('recompute', [False, True])
def test_identical_halves_give_the_gradients_of_one(family, recompute, tmp_path):
    """Exact with robust weights and random sampling as well: both halves are the same.

    And where the backward pass computes the student's activations again instead of keeping them.
    """
    data = small.batch(num_images=1)

    def half(rank):
        return gradients(wrap(build(family, {}, recompute=recompute), CPU), data)

    expected_losses, expected = gradients(wrap(build(family, {}), CPU), data)
    for losses, found in in_processes(tmp_path / 'group', half):
        assert TERMS < losses.keys()
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('family', small.FAMILIES)
@pytest.mark.parametrize('settings', [{}, dict(instances='gt')])
def test_process_without_boxes_does_not_stall_the_others(family, settings, tmp_path):
    full, empty = small.batch(num_images=2), small.batch(num_images=2, boxes=())

    def steps(rank):
        model = wrap(build(family, settings), CPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for data in ((full, empty)[rank], (empty, full)[rank], empty, full):
            losses, found = gradients(model, data)
            optimizer.step()
        return losses, found, {name: tensor for name, tensor in model.module.named_parameters()}

    (losses, one, first), (_, other, second) = in_processes(tmp_path / 'group', steps)
    assert all(torch.tensor(value).isfinite() for value in losses.values())
    for name, gradient in one.items():
        assert gradient is not None and gradient.isfinite().all()
        torch.testing.assert_close(gradient, other[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.slow
def test_training_and_testing_in_two_processes(tmp_path):
    _, config = tiny_data.write_pair(tmp_path, 'one_stage', epochs=1)
    work_dir = tmp_path / 'work'
    # As tools/train.sh does it: tests of other things fork processes instead.
    command = [sys.executable, REPOSITORY / 'tools' / 'torchrun.py', '--standalone',
               '--nproc_per_node', '2', REPOSITORY / 'tools' / 'train.py', config,
               '--work-dir', work_dir, '--launcher', 'pytorch']
    trained = subprocess.run(command, capture_output=True, text=True, timeout=900,
                             env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.count('2 process(es) on') == 1
    # One line of losses, not one a process.
    assert trained.stderr.count('Epoch [1][2/2]') == 1
    for noise in ('Warning', 'KaimingInit', 'Hooks will', 'Traceback', 'process 1'):
        assert noise not in trained.stdout + trained.stderr
    checkpoint = torch.load(work_dir / 'epoch_1.pth')
    assert 'gpu_ids = range(0, 2)' in checkpoint['meta']['config']
    shares = {path.name for path in (work_dir / 'prototypes').iterdir()}
    assert shares == {'epoch_1.safetensors', 'teacher_features_0_of_2.safetensors',
                      'teacher_features_1_of_2.safetensors'}
    assert not list(work_dir.glob('.*'))

    out = tmp_path / 'found.pkl'
    evaluation = json.loads((work_dir / 'evaluation.json').read_text())['1']

    def test(rank):
        return run_tool('test', config, work_dir / 'latest.pth', '--eval', 'bbox', '--out', out)

    (status, printed, stderr), (other_status, other_printed, _) = in_processes(
        tmp_path / 'group', test)
    assert status == other_status == 0, stderr
    assert f'maxDets=100 ] = {evaluation["bbox_mAP"]:.3f}' in printed
    assert 'Average Precision' not in other_printed
    assert not list(work_dir.glob('.*'))
    # In one process the same detections come out, in the same order.
    status, _, stderr = run_tool('test', config, work_dir / 'latest.pth', '--out',
                                 tmp_path / 'alone.pkl')
    assert status == 0, stderr
    for one, other in zip(mmcv.load(out), mmcv.load(tmp_path / 'alone.pkl')):
        for boxes, same in zip(one, other):
            np.testing.assert_allclose(boxes, same, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_error_of_one_process_ends_all_with_its_message(tmp_path):
    _, config = tiny_data.write_pair(tmp_path, 'one_stage', epochs=1)
    with open(config, 'a') as file:
        file.write('import os\n'
                   'if os.environ["RANK"] == "1":\n'
                   '    model["teacher"]["checkpoint"] = "gone.pth"\n')
    status, output = torchrun(
        tmp_path, '--standalone', '--nproc_per_node', 2, REPOSITORY / 'tools' / 'train.py',
        config, '--work-dir', tmp_path / 'work', '--launcher', 'pytorch')
    assert status == 2
    assert 'error in process 1' in output and 'gone.pth' in output
    assert 'Traceback' not in output
    assert not (tmp_path / 'work').exists()
