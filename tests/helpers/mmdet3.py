"""Run a script in an environment with MMDetection 3, which GKD_MMDET3_PYTHON names."""

import os
import subprocess

import pytest

from helpers.running import REPOSITORY

PYTHON = os.environ.get('GKD_MMDET3_PYTHON')
needs_mmdet3 = pytest.mark.skipif(
    not PYTHON, reason='GKD_MMDET3_PYTHON names no Python with MMDetection 3')


def run_mmdet3(script, *arguments):
    """Run ``tests/mmdet3/SCRIPT``; returns what it prints."""
    tests = REPOSITORY / 'tests'
    ended = subprocess.run(
        [PYTHON, tests / 'mmdet3' / script, *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': f'{REPOSITORY}{os.pathsep}{tests}'})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
