"""Progress: bars on a terminal, few lines elsewhere."""

import logging
import os
import re
import sys
import threading
from unittest import mock

import mmcv
import pytest
from helpers import tiny_data
from helpers.running import forget_loggers, run_tool
from helpers.terminals import lines_left, terminal
from mmcv.utils import get_logger

from gkd.compat import runner
from gkd.progress import Bar, LogLines, progress, silence, without_details, without_warnings
from gkd.running import load_config, train
from gkd.running.console import open_logger


@pytest.fixture
def experiment(tmp_path):
    """A config of two epochs with four steps, which is logged at every one."""
    _, path = tiny_data.write_pair(tmp_path, 'one_stage', batch_size=1)
    config = load_config(path, {'log_config.interval': 1})
    config.work_dir = str(tmp_path / 'work')
    forget_loggers()
    yield config
    forget_loggers()


def overlapping(first, second):
    """Run two blocks in threads; the second opens within the first and closes after it."""
    opened, both_open, closed = (threading.Event() for _ in range(3))

    def run_first():
        with first():
            opened.set()
            assert both_open.wait(10)
        closed.set()

    def run_second():
        assert opened.wait(10)
        with second():
            both_open.set()
            assert closed.wait(10)

    threads = [threading.Thread(target=function) for function in (run_first, run_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert closed.is_set()


def test_threads_that_are_silent_at_once_give_standard_output_back(capsys):
    before = sys.stdout
    overlapping(silence, silence)
    assert sys.stdout is before
    print('heard')
    assert capsys.readouterr().out == 'heard\n'


def test_a_silent_thread_drops_what_it_prints_itself(capsys):
    with silence():
        print('dropped')
        with silence():
            print('dropped, too')
        print('still dropped')
        thread = threading.Thread(target=print, args=('heard', ))
        thread.start()
        thread.join()
    assert capsys.readouterr().out == 'heard\n'


def test_blocks_that_overlap_give_the_log_back():
    for outside in (logging.NOTSET, logging.DEBUG):
        logging.disable(outside)
        try:
            for first, second in ((without_details, without_warnings),
                                  (without_warnings, without_details)):
                overlapping(first, second)
                assert logging.root.manager.disable == outside
            with without_warnings():
                with without_details():
                    assert logging.root.manager.disable == logging.WARNING
                assert logging.root.manager.disable == logging.WARNING
        finally:
            logging.disable(logging.NOTSET)


def test_training_on_a_terminal(experiment, capfd):
    with terminal() as sent:
        train(experiment)
    text = sent[0]
    for stage in ('prototypes, teacher', 'prototypes, student', 'prototypes, search',
                  'epoch 1 of 2', 'epoch 2 of 2', 'detecting'):
        assert re.search(rf'\r{stage}: +\d+%.*\d+/\d+ \[', text), stage
    assert re.search(r'epoch 2 of 2: +\d+%.*\| \d/4 \[00:\d\d<00:\d\d, .*loss [\d.]+, '
                     r'run ends in 00:', text)
    # Messages stay whole, bars go away.
    left = lines_left(text)
    assert sum('loss_global' in line for line in left) == 8
    assert all(re.match(r'\d{4}-\d\d-\d\d .* - mmdet - INFO - Epoch', line)
               for line in left if 'loss_global' in line)
    assert not any('%|' in line for line in left)
    assert 'ETA' not in capfd.readouterr().out
    log = next(name for name in os.listdir(experiment.work_dir) if name.endswith('.log'))
    with open(os.path.join(experiment.work_dir, log)) as file:
        assert '\r' not in file.read()


def test_logs_are_quiet(experiment, tmp_path, capfd):
    status, out, err = run_tool('train', tmp_path / 'distiller.py', '--work-dir', tmp_path / 'w')
    assert status == 0, err
    captured = capfd.readouterr()  # mmcv's bars keep hold of the first standard output
    text = out + err + captured.out + captured.err
    assert '\r' not in text and '%|' not in text and 'task/s' not in text
    status, out, err = run_tool('test', tmp_path / 'distiller.py', tmp_path / 'w/latest.pth',
                                '--eval', 'bbox')
    captured = capfd.readouterr()
    text = out + err + captured.out + captured.err
    assert status == 0 and '\r' not in text and 'task/s' not in text
    assert len(text.splitlines()) < 30


def test_long_work_is_logged_now_and_then(caplog, monkeypatch):
    get_logger('mmdet').propagate = True
    with caplog.at_level(logging.INFO, 'mmdet'):
        assert list(progress(range(1000), 'short')) == list(range(1000))
        assert not caplog.records
        clock = iter(range(0, 10_000, 25))  # seconds; tqdm asks several times per step
        bar = progress(None, 'long', 40, 'step')
        monkeypatch.setattr(bar, '_time', lambda: bar.start_t + next(clock))
        for _ in range(40):
            bar.update()
        bar.close()
    messages = [record.message for record in caplog.records]
    assert isinstance(bar, LogLines) and 3 < len(messages) < 20
    assert all(re.match(r'long: \d+ of 40 \(.*(s/step|step/s)\) in [\d:]+, [\d:]+ left$', message)
               for message in messages), messages


def test_only_the_first_process_draws():
    with terminal() as sent, mock.patch('gkd.progress.get_dist_info', lambda: (1, 2)):
        assert list(progress(range(3))) == [0, 1, 2]
    assert sent == ['']


def test_mmcv_s_bars_count_what_several_processes_add(caplog):
    with terminal() as sent:
        bar = mmcv.ProgressBar(5)
        for _ in range(3):
            bar.update(2)  # the last batch is filled up
        assert mmcv.track_iter_progress([1, 2]) is not None
        assert mmcv.track_progress(abs, [-1, -2]) == [1, 2]
    assert '6/5' not in sent[0] and 'detecting' in sent[0] and not lines_left(sent[0])[-1]


def test_messages_go_above_bars():
    forget_loggers()
    with terminal() as sent:
        logger = open_logger()
        assert len(open_logger().handlers) == 1
        with progress(None, 'working', 3) as bar:
            assert isinstance(bar, Bar)
            bar.update()
            logger.info('first')
            logger.info('Hooks will be executed in the following order')
            bar.refresh()
            logger.warning('second')
    forget_loggers()
    left = [line.split(' - ')[-1] for line in lines_left(sent[0])]
    assert left == ['first', 'second', '']


def test_epochs_begin_at_once():
    slept = []
    with mock.patch('time.sleep', slept.append):
        runner.epoch_based_runner.time.sleep(2)
    assert not slept and sys.modules['time'] is not runner.epoch_based_runner.time
