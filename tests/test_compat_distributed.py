"""Several processes on the CPU: gradients, launchers, and defaults that must not ask for CUDA."""

import importlib
import inspect
import os
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import mmcv.parallel._functions
import mmcv.runner
import mmdet.apis.test
import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.running import in_processes
from mmcv.parallel import DataContainer, MMDataParallel, MMDistributedDataParallel
from mmdet.core.bbox import AssignResult, IoUBalancedNegSampler
from mmdet.models.dense_heads import AnchorHead
from torch import nn

from gkd.collectives import all_gather, leave_group
from gkd.compat.distributed import init_distributed
from gkd.errors import ConfigError, EnvironmentMismatchError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
INPUTS = torch.arange(24.0).reshape(4, 6) / 10


class Model(nn.Module):
    """Takes a batch as MMDetection's loaders give it: tensors in DataContainers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.unused = nn.Linear(2, 2)

    def forward(self, img, meta):
        assert isinstance(img, torch.Tensor) and meta == ['a', 'b']
        return self.layer(img).pow(2).mean()

    def train_step(self, data, optimizer):
        loss = self(**data)
        return dict(loss=loss, log_vars=dict(loss=loss.item()), num_samples=2)

    def val_step(self, data, optimizer=None):
        return self.train_step(data, optimizer)


def batch(rank):
    return dict(img=DataContainer([INPUTS[2 * rank:2 * rank + 2]], stack=True),
                meta=DataContainer([['a', 'b']], cpu_only=True))


def steps(rank):
    """Gradients of two training steps, and what the other methods return."""
    model = Model()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False,
                                        find_unused_parameters=True)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        output = wrapped.train_step(batch(rank), None)
        output['loss'].backward()
        gradients.append([parameter.grad.clone() for parameter in model.layer.parameters()])
    with torch.no_grad():
        loss = wrapped(**batch(rank)).item()
        validation = wrapped.val_step(batch(rank), None)['loss'].item()
    # The next call is a plain forward again.
    wrapped(**batch(rank)).backward()
    return dict(gradients=gradients, loss=loss, validation=validation,
                unused=model.unused.weight.grad, keys=sorted(output))


def threads_after_leaving(rank):
    """Number of threads once a process that has trained has left the group."""
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    with mock.patch.object(dist, 'get_backend', lambda *_: 'nccl'):
        assert all_gather(rank) == [0, 1]  # through a group for objects on the CPU
    model.hooks = [model]  # a cycle, as runners and their hooks are
    del model
    leave_group()
    until = time.monotonic() + 5  # a thread that has ended may be listed a little longer
    while len(os.listdir('/proc/self/task')) > 1 and time.monotonic() < until:
        time.sleep(0.01)
    return len(os.listdir('/proc/self/task'))


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere threads are listed otherwise')
def test_no_thread_of_a_group_is_left_when_python_ends(tmp_path):
    """One that waits for Python's lock then would abort the process."""
    assert in_processes(tmp_path / 'group', threads_after_leaving) == [1, 1]


def test_two_processes_have_the_gradients_of_one(tmp_path):
    first, second = in_processes(tmp_path / 'processes', steps)
    model = Model()
    model.layer(INPUTS).pow(2).mean().backward()
    for of_both in (first['gradients'], second['gradients']):
        for gradients in of_both:
            for parameter, gradient in zip(model.layer.parameters(), gradients):
                assert torch.allclose(gradient, parameter.grad, atol=1e-6)
    for rank, result in enumerate((first, second)):
        expected = model.layer(INPUTS[2 * rank:2 * rank + 2]).pow(2).mean().item()
        assert result['loss'] == result['validation'] == pytest.approx(expected, abs=1e-6)
        assert result['unused'] is None
        assert result['keys'] == ['log_vars', 'loss', 'num_samples']


def collect_in_an_empty_folder(rank):
    """Results of images 0, 2 and 1, 3, of which the second process has but the first."""
    results = [['image 0', None], ['image 1']][rank]
    return mmdet.apis.test.collect_results_cpu(results, 3, tmpdir='results')


def test_the_first_process_gets_the_results_of_all_without_files(tmp_path, monkeypatch):
    """Other machines need not see its work dir."""
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    assert in_processes(tmp_path / 'group', collect_in_an_empty_folder) == [
        ['image 0', 'image 1', None], None]
    assert not list((tmp_path / 'empty').iterdir())


@pytest.fixture
def launched(monkeypatch):
    """Record how a process group would be made; no launcher's variables are set."""
    for name in list(os.environ):
        if name.startswith('SLURM_') or name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE',
                                                 'MASTER_ADDR', 'MASTER_PORT'):
            monkeypatch.delenv(name)
    # init_distributed sets variables itself: take them away again.
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    calls = []
    monkeypatch.setattr(dist, 'init_process_group',
                        lambda backend, **settings: calls.append((backend, settings)))
    monkeypatch.setattr(dist, 'get_rank', lambda: 0)
    monkeypatch.setattr(dist, 'get_world_size', lambda: 4)
    return calls


def test_one_process_needs_no_launcher(launched):
    assert init_distributed('none') is False
    assert launched == []


def test_torchrun(launched, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    os.environ.update(RANK='3', LOCAL_RANK='1', WORLD_SIZE='4', MASTER_ADDR='a', MASTER_PORT='1')
    assert init_distributed('pytorch', timeout=timedelta(seconds=5)) is True
    assert launched == [('gloo', dict(init_method='env://', timeout=timedelta(seconds=5)))]
    assert 'No GPU found: 4 processes' in capsys.readouterr().out


def test_gpus_use_nccl(launched, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    os.environ.update(RANK='3', LOCAL_RANK='1', WORLD_SIZE='4', MASTER_ADDR='a', MASTER_PORT='1')
    init_distributed('pytorch')
    assert launched[0][0] == 'nccl' and chosen == [1]
    os.environ['LOCAL_RANK'] = '2'
    with pytest.raises(ConfigError, match='Process 2 of this node has no GPU: 2 visible'):
        init_distributed('pytorch')


def test_slurm(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    os.environ.update(SLURM_PROCID='5', SLURM_LOCALID='1', SLURM_NTASKS='8',
                      SLURM_JOB_NODELIST='gpu-7.cluster', SLURM_JOB_ID='123456')
    init_distributed('slurm')
    assert {name: os.environ[name] for name in
            ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')} == dict(
        RANK='5', LOCAL_RANK='1', WORLD_SIZE='8', MASTER_ADDR='gpu-7.cluster', MASTER_PORT='23456')


def test_slurm_node_lists_are_expanded(launched, monkeypatch):
    commands = []

    def scontrol(command, **settings):
        commands.append(command)
        return SimpleNamespace(stdout='node3\nnode4\n')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(subprocess, 'run', scontrol)
    os.environ.update(SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='2',
                      SLURM_JOB_NODELIST='node[3-4]', MASTER_PORT='1234')
    init_distributed('slurm')
    assert commands == [['scontrol', 'show', 'hostnames', 'node[3-4]']]
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('node3', '1234')


def test_slurm_without_scontrol(launched, monkeypatch):
    def missing(command, **settings):
        raise FileNotFoundError('scontrol')

    monkeypatch.setattr(subprocess, 'run', missing)
    os.environ.update(SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='2',
                      SLURM_JOB_NODELIST='node[3-4]')
    with pytest.raises(EnvironmentMismatchError, match='Set MASTER_ADDR'):
        init_distributed('slurm')


def test_launcher_is_checked(launched):
    with pytest.raises(ConfigError, match="Unknown launcher 'mpi'; choose one of none, pytorch"):
        init_distributed('mpi')
    with pytest.raises(EnvironmentMismatchError, match='RANK, LOCAL_RANK, WORLD_SIZE'):
        init_distributed('pytorch')
    with pytest.raises(EnvironmentMismatchError, match='SLURM_PROCID'):
        init_distributed('slurm')


@without_gpu
@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_init_dist_of_mmcv_without_gpus(launched, launcher):
    os.environ.update(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='a', MASTER_PORT='1',
                      SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='1')
    mmcv.runner.init_dist(launcher, backend='nccl')
    assert launched[0][0] == 'gloo'


def test_scatter_makes_streams_of_gpu_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'Stream', lambda gpu: f'stream of {gpu}')
    get_stream = mmcv.parallel._functions._get_stream
    get_stream.cache_clear()
    assert get_stream(1) == 'stream of 1'
    get_stream.cache_clear()


@without_gpu
def test_helpers_default_to_the_cpu():
    from mmdet.core import MlvlPointGenerator, anchor, build_prior_generator
    generator = build_prior_generator(dict(
        type='AnchorGenerator', strides=[8], ratios=[1.0], scales=[4]))
    assert generator.grid_priors([(2, 2)])[0].device.type == 'cpu'
    assert MlvlPointGenerator([8]).grid_priors([(2, 2)])[0].device.type == 'cpu'
    for function in (AnchorHead.get_anchors, anchor.AnchorGenerator.valid_flags,
                     mmcv.utils.import_modules_from_strings('mmdet.core.utils').sync_random_seed):
        assert inspect.signature(function).parameters['device'].default == 'cpu'


def test_sampler_that_uses_old_names_of_numpy():
    sampler = IoUBalancedNegSampler(num=8, pos_fraction=0.25, neg_pos_ub=-1)
    overlaps = torch.linspace(0, 0.4, 20)
    assigned = AssignResult(1, torch.zeros(20, dtype=torch.long), overlaps,
                            labels=torch.zeros(20, dtype=torch.long))
    chosen = sampler._sample_neg(assigned, 6)
    assert len(chosen) == 6 and len(np.unique(chosen)) == 6


def test_data_parallel_stays_on_the_cpu_beside_a_gpu(monkeypatch):
    parallel = importlib.import_module('torch.nn.parallel.data_parallel')
    monkeypatch.setattr(parallel, '_get_available_device_type', lambda: 'cuda')
    wrapped = MMDataParallel(torch.nn.Linear(2, 1), device_ids=[])
    assert wrapped.device_ids == []
    assert wrapped(torch.ones(1, 2)).shape == (1, 1)
