"""Two nodes of two processes: who is who, learning rate, seeds, and shares of the data."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import tiny_data
from helpers.running import REPOSITORY, in_processes
from mmcv.runner import Hook
from mmdet.datasets import build_dataloader, build_dataset

from gkd.compat.distributed import init_distributed
from gkd.running import load_config, train

NODES, GPUS = 2, 2
# In the place of tools/train.py: notes who a process is.
TOOL = """
import json, os, sys
names = {names}
who = [int(os.environ[name]) for name in names]
with open(os.path.join({folder!r}, f'{{who[0]}}.json'), 'w') as file:
    json.dump([who, os.environ.get('MASTER_ADDR'), sys.argv[1:]], file)
"""


@pytest.fixture
def clone(tmp_path):
    """The launching scripts as they are, around a tool that only notes who it is."""
    tools = tmp_path / 'clone' / 'tools'
    tools.mkdir(parents=True)
    for name in ('launch.sh', 'train.sh', 'slurm_train.sh', 'torchrun.py'):
        (tools / name).symlink_to(REPOSITORY / 'tools' / name)
    (tools / 'setup.sh').write_text(f'echo {sys.executable}\n')
    return tools


def write_tool(clone, *names):
    (clone / 'train.py').write_text(TOOL.format(names=names, folder=str(clone)))


def noted(clone):
    """What every process noted, in order of rank."""
    return [json.loads((clone / f'{rank}.json').read_text()) for rank in range(NODES * GPUS)]


def free_port():
    """A port below those that connections of other programs are given at any moment."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(('127.0.0.1', port))
            return str(port)


def environment(**variables):
    return {**{name: value for name, value in os.environ.items()
               if not name.startswith(('SLURM_', 'MASTER_'))}, 'OMP_NUM_THREADS': '1', **variables}


def succeed(*commands):
    """Run commands side by side."""
    started = [subprocess.Popen(list(map(str, command)), env=environment(**variables),
                                stderr=subprocess.PIPE, text=True)
               for command, variables in commands]
    try:
        messages = [process.communicate(timeout=900)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, message in zip(started, messages):
        assert process.returncode == 0, message


@pytest.mark.slow
def test_ranks_on_two_nodes(clone):
    """The documented command, on two nodes at once."""
    write_tool(clone, 'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'GROUP_RANK')
    port = free_port()
    succeed(*((['bash', clone / 'train.sh', 'a config.py', GPUS, '--seed', 7],
               dict(NNODES=str(NODES), NODE_RANK=str(node), MASTER_ADDR='127.0.0.1',
                    MASTER_PORT=port)) for node in range(NODES)))
    arguments = ['a config.py', '--seed', '7', '--launcher', 'pytorch']
    assert noted(clone) == [[who, '127.0.0.1', arguments] for who in
                            ([0, 0, 4, 0], [1, 1, 4, 0], [2, 0, 4, 1], [3, 1, 4, 1])]


# In the place of tools/train.py: one process is killed once; the others, and all after it, sum up.
FAILING_TOOL = """
import datetime, os, pathlib, signal
import torch, torch.distributed as dist
dist.init_process_group('gloo', timeout=datetime.timedelta(minutes=4))
total = torch.ones(1)
dist.all_reduce(total)
mark = pathlib.Path(__file__).with_name('failed')
if dist.get_rank() == 1 and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
dist.all_reduce(total)
mark.with_name(f'sum_{dist.get_rank()}').write_text(str(total.item()))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_are_started_again_find_each_other(clone):
    """torchrun's elastic restart on two nodes; see tests/test_processes.py for one."""
    (clone / 'train.py').write_text(FAILING_TOOL)
    port = free_port()
    succeed(*((['bash', clone / 'train.sh', 'config.py', 1],
               dict(NNODES=str(NODES), NODE_RANK=str(node), MASTER_ADDR='127.0.0.1',
                    MASTER_PORT=port, PET_MAX_RESTARTS='2')) for node in range(NODES)))
    assert (clone / 'failed').exists()
    assert [(clone / f'sum_{rank}').read_text() for rank in range(NODES)] == ['4.0', '4.0']


# In the place of tools/train.py: the second process meets an error of the user's.
REFUSED_TOOL = """
import os, time
import torch.distributed as dist
dist.init_process_group('gloo')
if os.environ['RANK'] == '1':
    os._exit(2)
time.sleep(2)
os._exit(1)
"""


@pytest.mark.slow
def test_other_machines_end_without_a_traceback_where_one_must_be_mended(clone):
    (clone / 'train.py').write_text(REFUSED_TOOL)
    port = free_port()
    nodes = [subprocess.Popen(
        ['bash', str(clone / 'train.sh'), 'config.py', '1'], stderr=subprocess.PIPE, text=True,
        env=environment(NNODES=str(NODES), NODE_RANK=str(node), MASTER_ADDR='127.0.0.1',
                        MASTER_PORT=port, PET_MAX_RESTARTS='2')) for node in range(NODES)]
    messages = [node.communicate(timeout=900)[1] for node in nodes]
    assert sorted(node.returncode for node in nodes) == [1, 2], messages
    assert ''.join(messages).count('processes on another machine have ended') == 1
    assert 'Traceback' not in ''.join(messages)


# In the place of srun: starts the tasks as Slurm would, all on this machine.
SRUN = r"""#!/usr/bin/env bash
while [[ "$1" == --* ]]; do
  case "$1" in
    --ntasks) tasks="$2"; shift 2 ;;
    --ntasks-per-node) per_node="$2"; shift 2 ;;
    --*=*) shift ;;
    *) shift 2 ;;
  esac
done
for ((task = 0; task < tasks; task++)); do
  SLURM_NTASKS="$tasks" SLURM_PROCID="$task" SLURM_LOCALID="$((task % per_node))" "$@" &
done
wait
"""


def test_ranks_under_slurm(clone, tmp_path):
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    write_tool(clone, 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS')
    succeed((['bash', clone / 'slurm_train.sh', 'gpu', 'job', 'c.py', '--seed', 7],
             dict(GPUS=str(NODES * GPUS), GPUS_PER_NODE=str(GPUS),
                  PATH=f'{srun.parent}{os.pathsep}{os.environ["PATH"]}')))
    arguments = ['c.py', '--launcher', 'slurm', '--seed', '7']
    assert noted(clone) == [[who, None, arguments]
                            for who in ([0, 0, 4], [1, 1, 4], [2, 0, 4], [3, 1, 4])]


class RecordingHook(Hook):
    """Note what a process trains with."""

    def before_run(self, runner):
        self.files, self.rates = [], []

    def before_train_iter(self, runner):
        self.files += [meta['ori_filename'] for meta in runner.data_batch['img_metas'].data[0]]
        self.rates += runner.current_lr()

    def after_run(self, runner):
        self.weights = runner.model.module.state_dict()


@pytest.mark.slow
def test_training_on_two_nodes(tmp_path, monkeypatch):
    """Shares of the data and learning rate of four processes of Slurm, and equal weights after."""
    tiny_data.write_data(tmp_path, sizes=((96, 96),) * 8)
    path, _ = tiny_data.write_pair(tmp_path, 'one_stage', epochs=1, batch_size=1)
    hook = RecordingHook()
    build_runner = sys.modules['gkd.running.train'].build_runner

    def build(*args, **kwargs):
        runner = build_runner(*args, **kwargs)
        runner.register_hook(hook)
        return runner

    monkeypatch.setattr(sys.modules['gkd.running.train'], 'build_runner', build)

    def run(rank):
        os.environ.update(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank % GPUS),
                          SLURM_NTASKS=str(NODES * GPUS), MASTER_ADDR='127.0.0.1')
        assert init_distributed('slurm')
        config = load_config(path, {'optimizer.lr': 0.02})
        config.auto_scale_lr = dict(enable=True, base_batch_size=16)
        config.work_dir = str(tmp_path / 'work')
        train(config, validate=False)
        return (hook.files, hook.rates, hook.weights,
                [int(os.environ[name]) for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')])

    found = in_processes(tmp_path / 'group', run, world_size=NODES * GPUS)
    shares = [files for files, _, _, _ in found]
    # One image per process and step, each image once in an epoch, on one process only.
    assert [len(share) for share in shares] == [2] * 4
    assert sorted(sum(shares, [])) == [f'image_{number}.png' for number in range(8)]
    assert [who for _, _, _, who in found] == [[0, 0, 4], [1, 1, 4], [2, 0, 4], [3, 1, 4]]
    for _, rates, weights, _ in found:
        # Four images per step instead of sixteen.
        assert rates == pytest.approx([0.02 * 4 / 16] * 2)
        for name, tensor in weights.items():
            if 'running' not in name:  # every process has its own batch statistics
                torch.testing.assert_close(tensor, found[0][2][name], rtol=0, atol=0)


def test_every_loading_process_has_a_seed_of_its_own(tmp_path):
    """Four processes with two workers each augment differently, and the same when run again."""
    annotations = tiny_data.write_data(tmp_path)
    train_pipeline, _ = tiny_data.pipelines()
    dataset = build_dataset(tiny_data.dataset(annotations, train_pipeline))

    def seeds():
        drawn = []
        for rank in range(NODES * GPUS):
            for worker in range(2):
                with mock.patch('mmdet.datasets.builder.get_dist_info', return_value=(rank, 4)):
                    loader = build_dataloader(dataset, samples_per_gpu=1, workers_per_gpu=2,
                                              dist=True, seed=3)
                loader.worker_init_fn(worker)
                drawn.append((np.random.rand(), random.random()))
        return drawn

    first = seeds()
    assert len(set(first)) == len(first) == 8
    assert seeds() == first
