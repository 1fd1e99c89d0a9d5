"""What the package holds, and what its descriptions name."""

import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml
from helpers.running import REPOSITORY

from gkd.detectors.source import sources_of
from gkd.running import load_config


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Names of the files in a wheel of a copy of the clone."""
    folder = tmp_path_factory.mktemp('package')
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others',
                             '--exclude-standard'], cwd=REPOSITORY, capture_output=True,
                            text=True)
    if listed.returncode:
        pytest.skip('no clone: which files belong to the package is not known')
    for name in listed.stdout.split('\0'):
        source = REPOSITORY / name
        if name.startswith(('tests/', 'docs/', 'benchmarks/')) or not source.is_file():
            continue
        target = folder / 'clone' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    # In this environment: an isolated one would be downloaded.
    subprocess.run([sys.executable, '-c', 'from setuptools.build_meta import build_wheel; '
                    f'build_wheel({str(folder)!r})'], cwd=folder / 'clone', check=True,
                   capture_output=True)
    [path] = folder.glob('*.whl')
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_package_its_configs_and_its_tools(wheel):
    for folder, inside in (('gkd', 'gkd'), ('configs', 'gkd/.mim/configs'),
                           ('tools', 'gkd/.mim/tools')):
        for path in (REPOSITORY / folder).rglob('*'):
            if path.is_file() and '__pycache__' not in path.parts and '.mim' not in path.parts:
                needs_clone = (b'from studies' in path.read_bytes()
                               or path.name in ('run_tests.sh', 'build_docs.sh'))
                name = f'{inside}/{path.relative_to(REPOSITORY / folder).as_posix()}'
                assert (name in wheel) != needs_clone, name
    for name in ('model-index.yml', 'datalists/classes_config.json', 'checkpoints/manifest.json'):
        assert f'gkd/.mim/{name}' in wheel
    assert not [name for name in wheel if not name.startswith(('gkd/', 'gkd-'))]
    assert not [name for name in wheel if '__pycache__' in name or name.startswith('gkd/tests')]


@pytest.mark.slow
def test_installed_tools_look_into_the_current_folder(wheel, tmp_path):
    """Not into the package: for configs there, too, but for weights and results here only."""
    environment, here = tmp_path / 'environment', tmp_path / 'here'
    packages = environment / 'lib' / 'python3' / 'site-packages'
    for name, content in wheel.items():
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    python = environment / 'bin' / 'python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    tools = packages / 'gkd' / '.mim' / 'tools'
    recipe = 'configs/coco/gkd/gkd_retinanet_r101_r50_fpn_2x_coco.py'
    teacher, student = (Path(source.checkpoint).name for source in
                        sources_of(load_config(str(REPOSITORY / recipe)).model))
    (here / 'checkpoints').mkdir(parents=True)
    (here / 'checkpoints' / student).write_text('damaged')
    ended = subprocess.run(['bash', tools / 'train.sh', recipe], cwd=here, capture_output=True,
                           text=True)
    assert ended.returncode == 2, ended.stderr
    for text in (f'checkpoints/{teacher}. Get it with\n  python {tools}/checkpoints.py get',
                 f'checkpoints/{student} (7 bytes) is not the published file'):
        assert text in ended.stderr
    spec = spec_from_file_location('installed', packages / 'gkd' / 'repository.py')
    installed = module_from_spec(spec)
    spec.loader.exec_module(installed)
    manifest = Path(installed.REPOSITORY, 'checkpoints', 'manifest.json')
    assert (installed.WORKPLACE, manifest.is_file()) == ('', True)
    assert [path.name for path in here.iterdir()] == ['checkpoints']


def test_requirements_leave_mmcv_to_the_user(wheel):
    [metadata] = [text.decode() for name, text in wheel.items() if name.endswith('/METADATA')]
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist')]
    assert any('mmdet<4,>=2.28' in line for line in required)
    assert not [line for line in required if 'mmcv' in line and 'extra ==' not in line]


def test_described_models_are_there():
    index = yaml.safe_load((REPOSITORY / 'model-index.yml').read_text())
    described = []
    for name in index['Import']:
        metafile = yaml.safe_load((REPOSITORY / name).read_text())
        collections = {collection['Name'] for collection in metafile['Collections']}
        for model in metafile['Models']:
            described.append(model['Config'])
            assert model['In Collection'] in collections
            assert Path(model['Config']).stem == model['Name']
            config = load_config(str(REPOSITORY / model['Config']))
            assert config.model.type == 'Distiller'
            assert config.runner.max_epochs == model['Metadata']['Epochs']
    assert len(set(described)) == len(described) > 2


def test_import_without_mmcv_names_the_shortest_way():
    """Before anything else is imported: of an installation that failed half-way, too."""
    code = f'import sys; sys.path[:] = [{str(REPOSITORY)!r}, *sys.path]; import gkd.compat'
    ended = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True)
    assert ended.returncode == 1
    *_, error, command, _ = ended.stderr.splitlines()
    assert error == 'error: mmcv is not installed. The shortest way:'
    assert command.strip() == (
        "pip install 'setuptools>=70.1,<81' && "
        'MMCV_WITH_OPS=0 pip install --no-build-isolation mmcv==1.7.2')


def test_one_version_of_ruff():
    """The hooks check with what the tests' requirements pin."""
    hooks = yaml.safe_load((REPOSITORY / '.pre-commit-config.yaml').read_text())
    pinned = (REPOSITORY / 'requirements/tests.txt').read_text().splitlines()
    [ruff] = [hook for hook in hooks['repos'][0]['hooks'] if hook['id'] == 'ruff']
    assert ruff['additional_dependencies'][0] in pinned
