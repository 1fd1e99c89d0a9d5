"""``--device``: what a process may see, and messages about what is not there."""

import argparse
import os

import pytest
import torch
from helpers.running import REPOSITORY

from gkd.commands.device import VISIBLE, add_device_option
from gkd.errors import ConfigError

TOOLS = ('train', 'test', 'compare', 'distill', 'export_student', 'check_detectors', 'gallery',
         'noise_study', 'draw_trust', 'draw_concept',
         *(f'mmdet3/{name}' for name in ('train', 'test')))


@pytest.fixture
def gpus(monkeypatch):
    """Let torch count some GPUs, and CUDA_VISIBLE_DEVICES name them."""
    def see(count, names):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        if names is None:
            monkeypatch.delenv(VISIBLE, raising=False)
        else:
            monkeypatch.setenv(VISIBLE, names)

    see(0, '')
    return see


def read(*words):
    parser = argparse.ArgumentParser()
    add_device_option(parser)
    return parser.parse_args(words)


def test_the_cpu_sees_no_gpu(gpus):
    gpus(2, '4,7')
    assert read('--device', 'cpu').device == 'cpu' and os.environ[VISIBLE] == ''


@pytest.mark.parametrize('names, chosen', [('4,7', '7'), (None, '1'), ('GPU-8f,GPU-9a', 'GPU-9a')])
def test_one_gpu_is_the_only_one_to_be_seen(gpus, names, chosen):
    gpus(2, names)
    assert read('--device', 'cuda:1').device == 'cuda' and os.environ[VISIBLE] == chosen


def test_what_is_not_said_changes_nothing(gpus):
    gpus(2, '4,7')
    assert 'device' not in read()
    assert read('--device', 'cuda').device == 'cuda' and os.environ[VISIBLE] == '4,7'


@pytest.mark.parametrize('count, names, device, message', [
    (0, '', 'cuda', 'is empty and so hides all GPUs'),
    (0, None, 'cuda:1', 'nvidia-smi|built for the CPU'),
    (2, None, 'cuda:2', '2 GPUs are visible, cuda:0 to cuda:1'),
    (2, None, 'gpu', 'must be cpu, cuda, or cuda:N'),
])
def test_what_is_not_there_is_refused(gpus, count, names, device, message):
    gpus(count, names)
    with pytest.raises(ConfigError, match=f'--device {device}: .*({message})'):
        read('--device', device)
    assert os.environ.get(VISIBLE) == names


def test_several_processes_take_a_gpu_each(gpus, monkeypatch):
    gpus(2, None)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ConfigError, match='a GPU of its own.*CUDA_VISIBLE_DEVICES=0,1'):
        read('--device', 'cuda:1')
    assert read('--device', 'cuda').device == 'cuda'


@pytest.mark.parametrize('tool', TOOLS)
def test_all_tools_that_compute_take_it(tool):
    text = (REPOSITORY / 'tools' / f'{tool}.py').read_text(encoding='utf-8')
    assert 'add_device_option(parser)' in text or 'add_pair_options(parser' in text
