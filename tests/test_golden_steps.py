"""MMDetection 3 gives the losses of MMDetection 2 for the same weights and images."""

import json
import os
import subprocess

import pytest
from helpers import golden_steps
from helpers.running import REPOSITORY

PYTHON = os.environ.get('GKD_MMDET3_PYTHON')


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason='GKD_MMDET3_PYTHON names no Python with MMDetection 3')
def test_every_loss_and_the_gradients_are_bit_equal(tmp_path):
    path = tmp_path / 'steps.safetensors'
    golden_steps.write(path)
    ours = golden_steps.run(path)
    ended = subprocess.run([PYTHON, golden_steps.__file__, str(path)], capture_output=True,
                           text=True, env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
    assert ended.returncode == 0, ended.stderr
    theirs = json.loads(ended.stdout.splitlines()[-1])
    assert len(ours) >= 20
    for case, losses in ours.items():
        assert len(losses) > 3 and theirs[case] == losses, case
