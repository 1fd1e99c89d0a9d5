"""Missing and misfitting packages are named before anything else fails."""

import importlib.util
from importlib import metadata

import pytest

from gkd import compat
from gkd.compat.environment import check_environment
from gkd.errors import EnvironmentMismatchError


@pytest.mark.parametrize('package, advice', [
    ('mmcv', 'MMCV_WITH_OPS=0 pip install --no-build-isolation mmcv==1.7.2'),
    ('cv2', 'pip install opencv-python-headless'),
    ('mmdet', 'pip install mmdet==2.28.2')])
def test_missing_package(monkeypatch, package, advice):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec',
                        lambda name: None if name == package else find_spec(name))
    with pytest.raises(EnvironmentMismatchError) as error:
        check_environment()
    assert f'{package} is not installed' in str(error.value) and advice in str(error.value)


@pytest.mark.parametrize('package, installed, needed', [
    ('mmcv', '2.1.0', '1.x'), ('mmdet', '3.3.0', '2.x')])
def test_package_of_another_generation(monkeypatch, package, installed, needed):
    version = metadata.version
    monkeypatch.setattr(metadata, 'version',
                        lambda name: installed if name == package else version(name))
    with pytest.raises(EnvironmentMismatchError, match=f'{package} {installed}.* {needed}'):
        check_environment()


def test_applying_again_changes_nothing():
    from mmcv.runner import BaseRunner
    before = BaseRunner.resume
    compat.apply()
    assert BaseRunner.resume is before
