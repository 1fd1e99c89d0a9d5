"""The shell scripts: which environment they choose, and what they start in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = 'tools/setup.sh'


def run(script, *args, cwd=None, **variables):
    """Run a script without an active environment; returns the finished process."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('VIRTUAL_ENV', 'CONDA_PREFIX', 'GKD_VENV', 'GKD_PYTHON',
                                   'NNODES', 'MASTER_PORT', 'MASTER_ADDR', 'PORT',
                                   'OMP_NUM_THREADS')}
    environment.update(variables)
    return subprocess.run(['bash', ROOT / script, *args], env=environment, cwd=cwd or ROOT,
                          capture_output=True, text=True, timeout=600)


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\n{text}\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope='module')
def stamp():
    """What setup.sh writes into a complete environment of this clone, by its own rule."""
    source = (ROOT / SETUP).read_text()
    start = source.index('pins=(')
    rule = source[start:source.index('$root"\n', start) + len('$root"')]
    return subprocess.run(['bash', '-c', f'root="$1"; {rule}; echo "$wanted"', '-', ROOT],
                          capture_output=True, text=True, check=True).stdout


@pytest.fixture
def environment(tmp_path, stamp):
    """A complete environment whose Python only says what it is called with."""
    executable(tmp_path / 'venv/bin/python',
               'case "$1" in *installed.py) exit 1 ;; esac  # no MMDetection 3\n'
               'echo "threads ${OMP_NUM_THREADS:-unset}"; printf "%s\\n" "$@"')
    (tmp_path / 'venv/.gkd-setup').write_text(stamp)
    for name in ('pyvenv.cfg', '.gkd-made'):
        (tmp_path / 'venv' / name).touch()
    return tmp_path / 'venv'


def test_complete_environment_is_left_alone(environment, tmp_path):
    before = sorted(tmp_path.rglob('*'))
    result = run(SETUP, '--print-python', GKD_VENV=str(environment))
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout == f'{environment}/bin/python\n'
    assert sorted(tmp_path.rglob('*')) == before


def test_active_environment_is_used(environment):
    for variables in (dict(VIRTUAL_ENV=str(environment)),
                      dict(CONDA_PREFIX=str(environment), CONDA_DEFAULT_ENV='detection'),
                      dict(GKD_VENV=str(environment), VIRTUAL_ENV='/elsewhere')):
        assert run(SETUP, '--print-python', **variables).stdout == f'{environment}/bin/python\n'


def test_changed_pins_are_installed(environment, stamp):
    (environment / '.gkd-setup').write_text('other pins\n')
    result = run(SETUP, GKD_VENV=str(environment))
    assert result.returncode == 0
    for name in ('build', 'torch', 'runtime', 'tests', 'benchmarks'):
        assert f'{ROOT}/requirements/{name}.txt\n' in result.stderr
    assert (environment / '.gkd-setup').read_text().splitlines()[0] == stamp.strip()


@pytest.mark.parametrize('option, variables', [
    (('--mmdet', '3'), {}), (('--mmdet=3',), {}), ((), dict(GKD_MMDET='3'))])
def test_other_mmdetection_is_installed(environment, stamp, option, variables):
    (environment / '.gkd-setup').write_text(f'{stamp}\n2\n')
    result = run(SETUP, *option, GKD_VENV=str(environment), **variables)
    assert result.returncode == 0
    assert f'{ROOT}/requirements/mmdet3.txt\n' in result.stderr
    assert 'mmdet==2' not in result.stderr
    assert (environment / '.gkd-setup').read_text() == f'{stamp}\n3\n'
    # From then on without the option.
    for again in ((), ('--mmdet', '3')):
        assert run(SETUP, *again, GKD_VENV=str(environment)).stderr == ''


def test_installed_mmdetection_is_kept(environment):
    """A set-up again, for changed pins."""
    executable(environment / 'bin/python',
               'case "$*" in *"installed.py mmdet 3 4"*) ;; *installed.py*) exit 1 ;; esac\n'
               'printf "%s\\n" "$@"')
    (environment / '.gkd-setup').write_text('other pins\n')
    result = run(SETUP, VIRTUAL_ENV=str(environment))
    assert result.returncode == 0
    assert 'mmengine==' in result.stderr and 'mmdet==' not in result.stderr
    assert (environment / '.gkd-setup').read_text().splitlines()[2] == '3'


def test_unknown_mmdetection(environment):
    for arguments in (('--mmdet', '4'), ('--mmdet',)):
        result = run(SETUP, *arguments, GKD_VENV=str(environment))
        assert result.returncode == 2 and 'takes 2 or 3' in result.stderr
    result = run(SETUP, '--mmdet', '3', '--with-ops', GKD_VENV=str(environment))
    assert result.returncode == 1 and 'for MMDetection 2' in result.stderr


def test_failed_installation_is_tried_again(environment):
    """pip fails: no stamp stays behind that would call the environment complete."""
    (environment / '.gkd-setup').write_text('other pins\n')
    executable(environment / 'bin/python', 'case "$*" in *requirements*) exit 1 ;; esac')
    for _ in range(2):
        result = run(SETUP, VIRTUAL_ENV=str(environment))
        assert result.returncode == 1 and 'pip failed' in result.stderr
        assert not (environment / '.gkd-setup').exists()


def test_python_that_is_too_old_is_named(tmp_path):
    old = executable(tmp_path / 'python3.8', '[ "$1" = -V ] && echo Python 3.8.18')
    result = run(SETUP, GKD_VENV=str(tmp_path / 'venv'), GKD_PYTHON=str(old))
    assert result.returncode == 1
    assert 'python3.8: Python 3.8.18\n' in result.stderr
    assert '3.9 to 3.14' in result.stderr and 'GKD_PYTHON' in result.stderr
    assert not (tmp_path / 'venv').exists()


def test_folder_that_is_no_environment_is_not_touched(tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home/thesis.tex').write_text('precious')
    result = run(SETUP, GKD_VENV=str(tmp_path / 'home'), GKD_PYTHON=sys.executable)
    assert result.returncode == 1 and 'is no virtual environment' in result.stderr
    assert (tmp_path / 'home/thesis.tex').read_text() == 'precious'


def test_an_environment_that_the_script_has_not_made_is_never_remade(tmp_path):
    """Neither for want of pip, as in those of other tools, nor for another Python."""
    path = executable(tmp_path / 'venv/bin/python', 'case "$*" in *pip*) exit 1 ;; esac')
    (tmp_path / 'venv/pyvenv.cfg').write_text('precious')
    variables = dict(GKD_VENV=str(tmp_path / 'venv'), GKD_PYTHON=sys.executable)
    result = run(SETUP, **variables)
    assert result.returncode == 1 and f'{tmp_path / "venv"} has no pip' in result.stderr
    path.unlink()
    result = run(SETUP, **variables)
    assert result.returncode == 1 and 'set GKD_VENV to a new folder' in result.stderr
    assert (tmp_path / 'venv/pyvenv.cfg').read_text() == 'precious'


@pytest.mark.slow
def test_an_environment_of_the_script_is_remade_where_pip_is_missing(tmp_path):
    """As one whose making was interrupted."""
    (tmp_path / 'venv').mkdir()
    for name in ('pyvenv.cfg', '.gkd-made'):
        (tmp_path / 'venv' / name).touch()
    result = run(SETUP, GKD_VENV=str(tmp_path / 'venv'), GKD_PYTHON=sys.executable,
                 PIP_NO_INDEX='1', PIP_FIND_LINKS=str(tmp_path))
    assert result.returncode == 1 and 'pip failed' in result.stderr
    assert f'making {tmp_path / "venv"}' in result.stderr
    subprocess.run([tmp_path / 'venv/bin/python', '-m', 'pip', '--version'], check=True)
    assert (tmp_path / 'venv/.gkd-made').exists()


def test_old_torch_of_an_active_environment_is_named(tmp_path):
    python = executable(tmp_path / 'venv/bin/python',
                        'case "$*" in *"version(\'torch\')"*) echo 1.13.1 ;; esac')
    result = run(SETUP, VIRTUAL_ENV=str(python.parent.parent))
    assert result.returncode == 1
    assert 'has torch 1.13.1' in result.stderr and '2.1 is needed' in result.stderr


@pytest.mark.parametrize('variable', ['VIRTUAL_ENV', 'GKD_VENV'])
@pytest.mark.parametrize('torch, numpy, constraint', [
    ('2.1.2', '', 'numpy<2\n'), ('2.2.2', '2.0.0', 'numpy<2\n'), ('2.4.1', '1.26.4', 'numpy<2\n'),
    ('2.4.1', '2.1.0', '')])
def test_kept_torch_gets_what_goes_with_it(tmp_path, variable, torch, numpy, constraint):
    """In an environment that the script has not made.

    Also what the quickstart's data is made of, and an installed OpenCV that suits numpy 1.
    """
    executable(
        tmp_path / 'venv/bin/python',
        f'case "$*" in *"version(\'torch\')"*) echo {torch} ;;\n'
        f'*"version(\'numpy\')"*) echo {numpy} ;;\n'
        '*"version(\'opencv-python\')"*) echo 5.0 ;; *"version(\'"*) ;;\n'
        f'*run_setup*) exec {sys.executable} "$@" ;; *installed.py*) exit 1 ;;\n'
        '*) printf "%s\\n" "$@" ;; esac')
    (tmp_path / 'venv/pyvenv.cfg').touch()
    result = run(SETUP, **{variable: str(tmp_path / 'venv')})
    assert result.returncode == 0 and f'keeping torch {torch} ' in result.stderr
    printed = result.stderr.splitlines()
    assert {'opencv-python', 'scikit-image>=0.24', 'pytest>=7', 'tqdm>=4.60'} <= set(printed)
    assert not {'opencv-python-headless', 'mmdet>=2.28,<4'} & set(printed)
    assert (tmp_path / 'venv/.gkd-constraints.txt').read_text() == \
        f'{constraint}torch=={torch}\n'


def test_unknown_option():
    result = run(SETUP, '--with-opps')
    assert result.returncode == 2 and 'unknown option --with-opps' in result.stderr


@pytest.mark.parametrize('script', [
    'tools/setup.sh', 'tools/train.sh', 'tools/test.sh', 'tools/slurm_train.sh',
    'tools/run_tests.sh'])
def test_help(script):
    for option in ('-h', '--help'):
        result = run(script, option)
        assert result.returncode == 0 and 'usage:' in result.stdout and script in result.stdout


def started(script, *args, environment, **variables):
    """The arguments that the environment's Python gets, started from another folder."""
    result = run(script, *args, cwd=environment, GKD_VENV=str(environment), **variables)
    assert result.returncode == 0, result.stderr
    threads, *arguments = result.stdout.splitlines()
    return threads, arguments


@pytest.mark.parametrize('given', [
    (), ('--epochs', '1', '--work-dir', 'a b'), ('my config.py',),
    ('c.py', '--cfg-options', 'a=1', 'b=2')])
def test_train_in_one_process(environment, given):
    _, arguments = started('tools/train.sh', *given, environment=environment)
    assert arguments == [f'{ROOT}/tools/train.py', *given]


def test_mmdetection_3_has_commands_of_its_own(environment, tmp_path):
    executable(environment / 'bin/python',
               'case "$*" in *"installed.py mmdet 3 4") exit 0 ;; esac; printf "%s\\n" . "$@"')
    for tool in ('train', 'test'):
        _, arguments = started(f'tools/{tool}.sh', 'c.py', 'a.pth', environment=environment)
        assert arguments == [f'{ROOT}/tools/mmdet3/{tool}.py', 'c.py', 'a.pth']
    _, arguments = started('tools/compare.sh', 'c.py', '--list', environment=environment)
    assert arguments == [f'{ROOT}/tools/compare.py', 'c.py', '--list']  # this one is of both
    executable(tmp_path / 'bin/srun', 'echo unset; printf "%s\\n" "$@"')
    _, arguments = started('tools/slurm_train.sh', 'gpus', 'job', 'c.py', environment=environment,
                           PATH=f'{tmp_path}/bin:{os.environ["PATH"]}')
    assert arguments[-4:] == [f'{ROOT}/tools/mmdet3/train.py', 'c.py', '--launcher', 'slurm']


def test_one_gpu_is_one_process(environment):
    _, arguments = started('tools/train.sh', 'c.py', '1', '--seed', '3', environment=environment)
    assert arguments == [f'{ROOT}/tools/train.py', 'c.py', '--seed', '3']


def test_one_gpu_with_restarts(environment):
    """Nobody would start a bare process again."""
    _, arguments = started('tools/train.sh', 'c.py', environment=environment,
                           PET_MAX_RESTARTS='3')
    assert arguments == [f'{ROOT}/tools/torchrun.py', '--standalone', '--nproc_per_node', '1',
                         f'{ROOT}/tools/train.py', 'c.py', '--launcher', 'pytorch']
    _, arguments = started('tools/train.sh', environment=environment, PET_MAX_RESTARTS='3')
    assert arguments == [f'{ROOT}/tools/train.py']  # the quickstart has processes of its own


def test_train_on_several_gpus(environment):
    threads, arguments = started('tools/train.sh', 'a config.py', '8', '--seed', '3',
                                 environment=environment)
    assert arguments == [f'{ROOT}/tools/torchrun.py', '--standalone', '--nproc_per_node', '8',
                         f'{ROOT}/tools/train.py', 'a config.py', '--seed', '3',
                         '--launcher', 'pytorch']
    assert threads == f'threads {max(1, os.cpu_count() // 8)}'


def test_train_on_several_nodes(environment):
    _, arguments = started('tools/train.sh', 'c.py', '1', environment=environment, NNODES='2',
                           NODE_RANK='1', MASTER_ADDR='first', MASTER_PORT='1234')
    assert arguments[1:-2] == ['--nnodes', '2', '--node_rank', '1', '--master_addr', 'first',
                               '--master_port', '1234', '--nproc_per_node', '1',
                               f'{ROOT}/tools/train.py', 'c.py']
    result = run('tools/train.sh', 'c.py', '8', GKD_VENV=str(environment), NNODES='2')
    assert result.returncode == 2 and 'set MASTER_ADDR' in result.stderr


def test_train_on_one_node_with_a_port_and_restarts(environment):
    _, arguments = started('tools/train.sh', 'c.py', '2', environment=environment, PORT='99',
                           PET_MAX_RESTARTS='3')
    assert arguments[1:10] == [
        '--nnodes', '1', '--rdzv_backend', 'c10d', '--rdzv_id', 'gkd', '--rdzv_endpoint',
        '127.0.0.1:99', '--rdzv_conf']
    assert 'is_host=1' in arguments[10]


def test_test_script(environment):
    _, arguments = started('tools/test.sh', 'c.py', 'a.pth', '2', '--eval', 'bbox',
                           environment=environment, PORT='99', OMP_NUM_THREADS='5')
    assert arguments == [f'{ROOT}/tools/torchrun.py', '--nnodes', '1', '--node_rank', '0',
                         '--master_addr', '127.0.0.1', '--master_port', '99', '--nproc_per_node',
                         '2', f'{ROOT}/tools/test.py', 'c.py', 'a.pth', '--eval', 'bbox',
                         '--launcher', 'pytorch']
    assert run('tools/test.sh', 'c.py', GKD_VENV=str(environment)).returncode == 2


def test_slurm_script(environment, tmp_path):
    executable(tmp_path / 'bin/srun', 'echo unset; printf "%s\\n" "$@"')
    path = f'{tmp_path}/bin:{os.environ["PATH"]}'
    _, arguments = started('tools/slurm_train.sh', 'gpus', 'a job', 'c.py', '--seed', '3',
                           environment=environment, PATH=path, GPUS='16',
                           SRUN_ARGS='--exclusive --time 9:00')
    assert arguments == ['--partition', 'gpus', '--job-name', 'a job', '--gres', 'gpu:8',
                         '--ntasks', '16', '--ntasks-per-node', '8', '--cpus-per-task', '5',
                         '--kill-on-bad-exit=1', '--exclusive', '--time', '9:00',
                         f'{environment}/bin/python', '-u', f'{ROOT}/tools/train.py', 'c.py',
                         '--launcher', 'slurm', '--seed', '3']
