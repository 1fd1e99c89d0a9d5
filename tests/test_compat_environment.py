"""Missing and misfitting packages are named before anything else fails."""

import importlib.util
import subprocess
import sys

import pytest

from gkd import compat, environment
from gkd.environment import check_environment
from gkd.errors import ConfigError, EnvironmentMismatchError
from gkd.installed import installed_version, numbers
from gkd.running.config import load_config


def installed(monkeypatch, **versions):
    """Let these versions be installed, and no others."""
    monkeypatch.setattr(environment, 'installed_version', versions.get)


@pytest.mark.parametrize('package, advice', [
    ('mmcv', 'MMCV_WITH_OPS=0 pip install --no-build-isolation mmcv==1.7.2'),
    ('cv2', 'pip install opencv-python-headless'),
    ('mmdet', 'pip install mmdet==2.28.2')])
def test_missing_package(monkeypatch, package, advice):
    installed(monkeypatch, mmcv='1.7.2', mmdet='2.28.2')
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec',
                        lambda name: None if name == package else find_spec(name))
    if package != 'cv2':
        installed(monkeypatch, **{name: version for name, version in
                                  (('mmcv', '1.7.2'), ('mmdet', '2.28.2')) if name != package})
    with pytest.raises(EnvironmentMismatchError) as error:
        check_environment()
    assert f'{package} is not installed' in str(error.value) and advice in str(error.value)


@pytest.mark.parametrize('versions', [
    dict(mmdet='2.28.2', mmcv='1.7.2'),
    dict(mmdet='2.28.2', mmcv='1.7.2', mmengine='0.10.7'),
    dict(mmdet='3.3.0', mmcv='2.1.0', mmengine='0.10.7'),
    dict(mmdet='3.3.0', mmcv='2.2.0', mmengine='0.10.7'),
    dict(mmdet='', mmcv='1.7.2')])
def test_what_goes_together(monkeypatch, versions):
    installed(monkeypatch, **versions)
    check_environment()


@pytest.mark.parametrize('versions, texts', [
    (dict(mmdet='3.3.0', mmcv='1.7.2', mmengine='0.10.7'),
     ('mmcv 1.7.2, mmengine 0.10.7, mmdet 3.3.0', 'pip install mmcv-lite==2.1.0',
      'setup.sh --mmdet 3`')),
    (dict(mmdet='3.3.0', mmcv='1.7.2'),
     ('no mmengine', 'pip install mmengine==0.10.7', 'pip install mmcv-lite==2.1.0')),
    (dict(mmdet='2.28.2', mmcv='2.1.0', mmengine='0.10.7'),
     ('mmcv 2.1.0', 'MMCV_WITH_OPS=0', '--mmdet 3.')),
    (dict(mmdet='3.3.0'), ('no mmcv, no mmengine, mmdet 3.3.0',)),
    (dict(mmdet='1.2.0', mmcv='0.5.0'), ('mmdet 1.2.0', 'pip install mmdet==2.28.2')),
    (dict(mmdet='4.0.0', mmcv='2.2.0', mmengine='0.10.7'), ('pip install mmdet==3.3.0',))])
def test_mixed_installation(monkeypatch, versions, texts):
    """One message: all that is installed, and all that is to be done."""
    installed(monkeypatch, **versions)
    with pytest.raises(EnvironmentMismatchError) as error:
        check_environment()
    for text in texts:
        assert text in str(error.value)


@pytest.mark.parametrize('torch, numpy, fits', [
    ('2.1.2+cu121', '2.2.6', False), ('2.2.2', '2.0.0', False),
    ('2.1.2+cu121', '1.26.4', True), ('2.3.0', '2.2.6', True), ('2.14.1', '2.4.6', True)])
def test_numpy_that_torch_is_not_built_for(monkeypatch, torch, numpy, fits):
    """pip puts numpy 2 beside any torch, as the newest OpenCV asks for it."""
    installed(monkeypatch, mmdet='3.3.0', mmcv='2.1.0', mmengine='0.10.7', torch=torch,
              numpy=numpy)
    monkeypatch.setattr(environment.metadata, 'version', {'opencv-python': '5.0'}.__getitem__)
    monkeypatch.setattr(environment.metadata, 'PackageNotFoundError', KeyError)
    if fits:
        return check_environment()
    with pytest.raises(EnvironmentMismatchError) as error:
        check_environment()
    assert f'torch {torch}, numpy {numpy}. ' in str(error.value)
    assert "pip install 'numpy<2' 'opencv-python<4.12'\n" in str(error.value)
    assert 'setup.sh --mmdet 3`' in str(error.value)


def test_versions_of_torch_and_numpy_are_found():
    import numpy
    import torch
    assert installed_version('torch') == torch.__version__
    assert installed_version('numpy') in (numpy.__version__, '')  # numpy 1.23 computes it


def test_distributions_of_a_package_are_named(monkeypatch):
    """pip uninstalls a distribution, not what is imported."""
    installed(monkeypatch, mmdet='3.3.0', mmcv='1.7.2', mmengine='0.10.7')

    def version(name):
        if name != 'mmcv-full':
            raise environment.metadata.PackageNotFoundError(name)
        return '1.7.2'

    monkeypatch.setattr(environment.metadata, 'version', version)
    with pytest.raises(EnvironmentMismatchError) as error:
        check_environment()
    assert 'mmcv 1.7.2 (mmcv-full)' in str(error.value)
    assert 'pip uninstall -y mmcv-full\n' in str(error.value)


def test_version_comes_from_what_would_be_imported(monkeypatch, tmp_path):
    """Forks go by another name on the index; none of it is imported."""
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine/__init__.py').write_text('raise SystemExit("imported")')
    (tmp_path / 'mmengine/version.py').write_text("# fork\n__version__ = '0.10.9'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mmengine', raising=False)
    assert installed_version('mmengine') == '0.10.9'
    assert installed_version('no_such_package') is None
    assert numbers('0.10.0rc4') == (0, 10, 0) < numbers('0.10.9') and numbers('') == ()


@pytest.mark.slow
def test_what_python_3_14_lacks_or_changed():
    """It dropped ``pkgutil.find_loader``, and starts workers afresh unless told otherwise."""
    code = """
import multiprocessing, pkgutil, types
vars(pkgutil).pop('find_loader', None)
from gkd.compat import defaults
defaults.sys = types.SimpleNamespace(version_info=(3, 14, 0), platform='linux')
defaults.fork_workers()
assert multiprocessing.get_start_method(allow_none=True) == 'fork'
from mmcv.utils.ext_loader import check_ops_exist
assert not check_ops_exist()
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_applying_again_changes_nothing():
    from mmcv.runner import BaseRunner
    before = BaseRunner.resume
    compat.apply()
    assert BaseRunner.resume is before


@pytest.mark.parametrize('text, reason', [
    ('model = dict(type="RetinaNet")\ntrain_dataloader = dict()\n', 'has `train_dataloader`'),
    ('_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"\n', 'is for MMDetection 3')])
def test_a_config_of_the_other_mmdetection_is_named(tmp_path, text, reason):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with pytest.raises(ConfigError, match=f'{reason}.*--mmdet 3'):
        load_config(str(path))
