"""What all tests share.

Tests see no GPU, so that they show the same everywhere, but for those marked ``gpu``:
``pytest -m gpu`` runs these, where there is one.
"""

# ruff: noqa: E402  (torch must be imported after the GPUs are hidden)
import os
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

ON_GPU = '-m' in sys.argv and sys.argv[sys.argv.index('-m') + 1] == 'gpu'
if not ON_GPU:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''  # before torch looks

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import gkd  # noqa: F401  (must come before anything imports mmdet)
from gkd.installed import mmdet_major

# Under MMDetection 3: its own tests, and those that concern neither. Under 2: all others.
OF_BOTH = ('test_bank.py', 'test_commands_trial.py', 'test_compat_config_text.py',
           'test_compat_optimizers.py', 'test_compat_samplers.py', 'test_config_files.py',
           'test_config_text.py', 'test_files.py', 'test_kept_step.py', 'test_locks.py',
           'test_losses.py', 'test_pursuit.py')
collect_ignore = ['mmdet3'] if mmdet_major() == 2 else [
    path.name for path in Path(__file__).parent.glob('*') if path.name not in (*OF_BOTH, 'mmdet3')]

# Tests are small: threads would cost more than they gain, and differ between machines.
torch.set_num_threads(1)

# The same examples every time, however slow the machine is.
settings.register_profile('reproducible', deadline=None, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('reproducible')


def pytest_collection_modifyitems(items):
    """Put files with long tests first, and skip what needs a GPU where none is to be seen."""
    if 'PYTEST_XDIST_WORKER' in os.environ:
        # Then the short ones fill up what time the processes have left in the end.
        long = Counter(item.path for item in items if item.get_closest_marker('slow'))
        items.sort(key=lambda item: -long[item.path])
    if torch.cuda.is_available():
        return
    reason = 'no GPU' if ON_GPU else 'needs a GPU: run with -m gpu'
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeded():
    """Let every test draw the same random numbers, alone or among others."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope='module', autouse=True)
def plain_configs():
    """Leave the layout of configs out: it takes longer than training a small detector."""
    module = {2: 'mmcv.utils.config', 3: 'mmengine.config.config'}[mmdet_major()]
    with mock.patch(f'{module}.FormatCode', lambda text, **settings: (f'{text}\n', False)):
        yield


@pytest.fixture(scope='module', autouse=True)
def loggers_of_its_own():
    """Let no logger write to the standard error of another file's test, which is closed."""
    if mmdet_major() == 2:
        from helpers.running import forget_loggers
        forget_loggers()


@pytest.fixture(scope='module')
def short_backbones():
    """Let backbones have one block a stage."""
    from gkd.frameworks import BACKBONES
    from studies import small_models
    settings = {kind: kind.arch_settings for kind in BACKBONES.module_dict.values()
                if hasattr(kind, 'arch_settings')}
    small_models.shorten_backbones()
    yield
    for kind, value in settings.items():
        kind.arch_settings = value


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """A folder with a pair that trains; kept as it is."""
    from helpers import tiny_data
    folder = tmp_path_factory.mktemp('original')
    tiny_data.write_pair(folder, 'one_stage')
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """The working directory: a pair that trains, until the test breaks it."""
    for path in original.rglob('*'):
        if path.is_file():
            copied = tmp_path / path.relative_to(original)
            copied.parent.mkdir(exist_ok=True)
            text = path.read_bytes()
            if path.suffix == '.py':
                text = text.replace(str(original).encode(), str(tmp_path).encode())
            copied.write_bytes(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path
