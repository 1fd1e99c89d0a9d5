"""The benchmarks run, on the CPU in tiny sizes: what they measure is no matter for tests."""

import logging

import pytest
import torch
from helpers.running import REPOSITORY

COUNT_THE_SAME_ANYWHERE = {'operations', 'tensor_memory'}


@pytest.fixture
def measure(monkeypatch):
    """The benchmarks' common part, which leaves this process as it is."""
    import measure
    monkeypatch.setattr(measure, 'keep_freed_memory', lambda: None)
    monkeypatch.setattr(measure, 'in_fresh_process', lambda *arguments: '1')
    return measure


def test_the_module_is_measured(measure):
    levels = {name: logging.getLogger(name).level for name in ('mmcv', 'mmdet')}
    import distilling_module
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    case = distilling_module.Case(images=1, height=64, width=64, positives=2, classes=2)
    row = distilling_module.measure_case(case, rounds=2)
    assert all(row['seconds'][part]['median'] > 0 for part in ('losses', 'convolutions', 'whole'))
    assert row['kernels'] is None and row['memory'] == 1


def test_the_search_is_measured(measure, monkeypatch):
    import prototype_search
    monkeypatch.setattr(prototype_search, 'CHANNELS', 8)
    row = prototype_search.measure_size(40, rounds=1)
    assert row['instances'] == 40 and row['process_bytes'] > 0 and row['search']['median'] > 0


def test_tensors_move_in_whatever_holds_them(measure, monkeypatch):
    monkeypatch.setattr(measure, 'device', lambda: torch.device('meta'))
    moved = measure.on_device(dict(image=torch.ones(2), boxes=[(torch.ones(1), 'name')], count=3))
    assert moved['image'].is_meta and moved['boxes'][0][0].is_meta
    assert moved['boxes'][0][1] == 'name' and moved['count'] == 3


def test_all_benchmarks_are_run_by_one_command_and_take_a_device():
    import run_all
    scripts = {path.stem: path.read_text(encoding='utf-8')
               for path in (REPOSITORY / 'benchmarks').glob('*.py')}
    commands = {name for name, text in scripts.items() if 'def main()' in text}
    assert commands - {'run_all'} == set(run_all.BENCHMARKS)
    assert {name for name in commands if 'add_device_option(parser)' not in scripts[name]} == \
        COUNT_THE_SAME_ANYWHERE
    for name, brief in run_all.BENCHMARKS.items():
        for option in (word for word in brief if word.startswith('--')):
            assert f"'{option}'" in scripts[name]


@pytest.mark.slow
def test_memory_is_counted_in_tensors(measure, monkeypatch):
    import argparse

    import gpu_step
    import tensor_memory
    monkeypatch.setattr(gpu_step, 'SMALL_SIZE', (64, 96))
    monkeypatch.setattr(gpu_step, 'AUTOCAST', dict(cpu=torch.bfloat16))
    plain, autocast = tensor_memory.measure_family(
        'retinanet', argparse.Namespace(small=True, images=[1]))
    assert plain['precision'] == 'float32' and autocast['precision'] == 'bfloat16'
    for row in (plain, autocast):
        # Student and its gradients; then the teacher, which has as many weights in half precision.
        assert 1.2 < row['ratio'] < 1.6
