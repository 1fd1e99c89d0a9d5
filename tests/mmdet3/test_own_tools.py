"""MMDetection's own, unmodified commands train a distillation: its config imports gkd."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from small_experiments import experiment

from gkd.compat.checkpoint import load_checkpoint_file
from gkd.errors import ConfigError

OWN = Path(mmdet.__file__).parent / '.mim' / 'tools'


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
@pytest.mark.skipif(not OWN.is_dir(), reason='a development install has no copy of the tools')
def test_own_launcher_trains_in_two_processes(annotations, tmp_path, free_port):
    config = experiment(annotations, tmp_path / 'work', hooks=[dict(type='ReportHook')])
    config.custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'config.py')
    ended = subprocess.run(
        ['bash', OWN / 'dist_train.sh', tmp_path / 'config.py', '2'], text=True,
        capture_output=True, cwd=tmp_path, env={
            **os.environ, 'PORT': str(free_port), 'OMP_NUM_THREADS': '1',
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    checkpoint = load_checkpoint_file(tmp_path / 'work' / 'epoch_1.pth')
    assert checkpoint['resume']['length'] == 2  # batches of a process: six images, four a step
    assert len(checkpoint['resume']['random']) == 2
    assert (tmp_path / 'work' / 'report.html').exists()
    record = json.loads((tmp_path / 'work' / 'record.json').read_text())
    assert record['processes'] == 2 and record['epochs']['1']['time']['backward'][0] == 2


def test_own_runner_refuses_a_distillation_that_counts_iterations(annotations, tmp_path):
    """With MMEngine's own checkpoints; the decay would stay at its start."""
    config = experiment(annotations, tmp_path / 'work')
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        runner = Runner.from_cfg(config)
        with pytest.raises(ConfigError, match='IterBasedTrainLoop: the decay of .*, or Iteration'):
            runner.train()
    assert runner.iter == 0


@pytest.mark.skipif(not OWN.is_dir(), reason='a development install has no copy of the tools')
def test_own_command_ends_with_the_message_alone(annotations, tmp_path, monkeypatch, capsys):
    config = experiment(annotations, tmp_path / 'work', hooks=[dict(type='TrialHook')])
    config.custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
    config.val_evaluator.metric = 'segm'
    config.dump(tmp_path / 'refused.py')
    monkeypatch.setattr(sys, 'argv', ['train.py', str(tmp_path / 'refused.py')])
    with pytest.raises(ConfigError) as refused:
        runpy.run_path(str(OWN / 'train.py'), run_name='__main__')
    capsys.readouterr()
    sys.excepthook(refused.type, refused.value, refused.tb)  # as Python does at the end
    printed = capsys.readouterr().err
    assert printed.startswith('\nerror: val_evaluator: a trial with two images fails')
    assert 'Traceback' not in printed
