"""How a command ends."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.running import REPOSITORY

from gkd.commands import processes, run
from gkd.commands.processes import children_end_too, run_tool
from gkd.commands.trial import trying
from gkd.errors import ConfigError, DataError, RunError


def where_it_is_misread():
    """As MMEngine's ``pretty_text``, which takes anything that is raised for wrong syntax."""
    try:
        raise KeyboardInterrupt
    except:  # noqa: E722
        raise SyntaxError('Failed to format the config file')  # noqa: B904


def where_it_is_read():
    raise KeyboardInterrupt


def long_after():
    try:
        where_it_is_read()
    except KeyboardInterrupt:
        pass
    raise SyntaxError('another')


def of_the_users():
    raise DataError('something')


def of_no_known_kind():
    raise RunError('something')


def test_of_the_processes_of_slurm_the_first_one_speaks(monkeypatch, capsys):
    """They are numbered before they have met; other commands that Slurm runs are none of them."""
    waited = []
    monkeypatch.setattr('time.sleep', waited.append)
    monkeypatch.setenv('SLURM_PROCID', '3')
    monkeypatch.delenv('RANK', raising=False)
    for arguments, expected in ((['train.py', 'c.py', '--launcher', 'slurm'], 'in process 3: '),
                                (['train.py', 'c.py'], 'error: ')):
        monkeypatch.setattr('sys.argv', arguments)
        with pytest.raises(SystemExit):
            run(of_the_users)
        assert f'{expected}something' in capsys.readouterr().err
    assert [bool(seconds) for seconds in waited] == [True, False]


def test_the_loss_of_another_process_is_no_fault_of_the_config(monkeypatch):
    """A launcher that starts processes again would not, if a trial called it one."""
    lost = RuntimeError('Connection closed by peer')
    with pytest.raises(ConfigError, match='model: a trial .*RuntimeError'), \
            trying('model', 'detecting', 'Look at it.'):
        raise lost
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    with pytest.raises(RuntimeError, match='^Connection closed'), \
            trying('model', 'detecting', 'Look at it.'):
        raise lost


LINE = ('\nstopped. Run the same command again to continue; a training resumes from its last '
        'checkpoint.\n')


@pytest.mark.parametrize('main, status, says', [
    (where_it_is_read, 130, LINE),
    (where_it_is_misread, 130, LINE),
    (long_after, 1, '\nerror: SyntaxError: another'),
    (of_no_known_kind, 1, '\nerror: something'),
    (of_the_users, 2, '\nerror: something')])
def test_a_command_ends_with_a_message_and_a_status(main, status, says, capsys):
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith(says)


def tell_and_wait(ready):
    """Tell this process's number, once it runs."""
    ready.send(os.getpid())
    time.sleep(100)


def wait_with_a_worker(ready):
    """Fork a process, as torch does to load images, and tell how it ended."""
    worker = multiprocessing.get_context('fork').Process(target=tell_and_wait, args=(ready,))
    worker.start()
    worker.join()
    ready.send(worker.exitcode)
    time.sleep(100)


def command(ready, output):
    """What a tool does, with its messages in a file."""
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 2)
    run(lambda: wait_with_a_worker(ready))


@pytest.mark.parametrize('rank, said', [(None, LINE), ('0', ''), ('1', '')])
def test_sigterm_ends_a_command_with_one_line_and_its_own_status(
        tmp_path, monkeypatch, rank, said):
    """Processes of a launcher leave the word to it."""
    if rank is None:
        monkeypatch.delenv('RANK', raising=False)
    else:
        monkeypatch.setenv('RANK', rank)
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe()
    tool = context.Process(target=command, args=(there, tmp_path / 'stderr'))
    tool.start()
    assert here.poll(60)
    os.kill(here.recv(), signal.SIGTERM)  # says nothing
    assert here.poll(60) and here.recv() == -signal.SIGTERM
    tool.terminate()
    tool.join(60)
    assert tool.exitcode == -signal.SIGTERM
    assert (tmp_path / 'stderr').read_text() == said
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_speaks_for_those_that_it_runs(tmp_path, number, status):
    """The signal goes to all of them, as from a terminal or a cluster's scheduler."""
    tool, started = tmp_path / 'tool.py', tmp_path / 'started'
    tool.write_text('import pathlib, signal, time\nfrom gkd.commands import run\n'
                    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
                    f'run(lambda: pathlib.Path({str(started)!r}).touch() or time.sleep(100))\n')

    def run_stages():
        with ThreadPoolExecutor(1) as pool, children_end_too():
            pool.submit(run_tool, [str(tool)])
            time.sleep(100)

    first = os.fork()
    if first == 0:
        os.setpgid(0, 0)
        os.environ['PYTHONPATH'] = str(REPOSITORY)
        output = os.open(tmp_path / 'output', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        sys.stdout = sys.stderr = os.fdopen(output, 'w', buffering=1)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run(run_stages)
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    until = time.time() + 60
    while not started.exists() and time.time() < until:
        time.sleep(0.05)
    os.kill(first, number)  # twice, as `timeout` does
    os.killpg(first, number)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == status
    said = (tmp_path / 'output').read_text()
    assert said.count('stopped') == 1 and said.endswith(LINE)


@pytest.mark.slow
def test_the_launcher_of_several_processes_says_the_line_for_them(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text('import os, pathlib, time\nfrom gkd.commands import run\n'
                    f'place = pathlib.Path({str(tmp_path)!r}, os.environ["RANK"])\n'
                    'run(lambda: place.touch() or time.sleep(100))\n')
    launcher = subprocess.Popen(
        [sys.executable, REPOSITORY / 'tools' / 'torchrun.py', '--standalone',
         '--nproc_per_node', '2', tool], stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'})
    until = time.time() + 60
    while not all((tmp_path / rank).exists() for rank in '01') and time.time() < until:
        time.sleep(0.1)
    launcher.terminate()
    said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == -signal.SIGTERM
    assert said.count('stopped') == 1 and said.endswith(LINE) and 'Traceback' not in said


def test_a_terminal_without_all_letters_ends_no_command(monkeypatch, capsys):
    terminal = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', terminal)
    run(lambda: print('größer –'))
    terminal.flush()
    assert terminal.buffer.getvalue() == b'gr??er ?\n'
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys, 'getfilesystemencoding', lambda: 'ANSI_X3.4-1968')
    run(lambda: None)
    assert 'their names for ascii' in capsys.readouterr().err


def test_a_stage_that_has_just_ended_does_not_keep_the_others_running(monkeypatch):
    ended = subprocess.Popen(['true'])
    ended.wait()
    other = subprocess.Popen(['sleep', '100'])
    monkeypatch.setattr(processes, 'children', [ended.pid, other.pid])  # in this order
    try:
        with pytest.raises(KeyboardInterrupt), children_end_too():
            raise KeyboardInterrupt
        assert other.wait(10) == -signal.SIGTERM
    finally:
        other.kill()
        processes.ending.clear()
