"""Run the command-line tools inside the test process, and functions in several processes."""

import contextlib
import importlib.util
import io
import logging
import os
import runpy
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from unittest import mock

import cv2
import mmcv.utils.logging
import torch
import torch.distributed as dist
import torch.multiprocessing

REPOSITORY = Path(__file__).parents[2]


def run_tool(name, *args):
    """Run ``tools/NAME.py ARGS`` here, where everything is imported already.

    Returns:
        Exit status, standard output and standard error, with all that the loggers write.
    """
    path = REPOSITORY / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tools_{name}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    forget_loggers()
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), \
            mock.patch.object(sys, 'argv', [str(path), *map(str, args)]):
        try:
            tool.run(tool.main)
        except SystemExit as end:
            status = end.code
    forget_loggers()
    return status, out.getvalue(), err.getvalue()


def succeed(name, *args):
    """Run a tool that must succeed; returns what it writes to standard output and error."""
    status, stdout, stderr = run_tool(name, *args)
    assert status == 0, stderr
    assert 'Traceback' not in stderr
    return stdout, stderr


def forget_loggers():
    """Let the next run make its loggers anew, as a new process would."""
    for name in ('mmdet', 'mmcv'):
        logging.getLogger(name).handlers.clear()
        mmcv.utils.logging.logger_initialized.pop(name, None)


def in_processes(folder, function, world_size=2):
    """Run ``function(rank)`` in processes that are joined over gloo.

    Returns:
        What each of them returned, in order of rank.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    # Forked, for importing everything again would take longer than the test.
    torch.multiprocessing.start_processes(
        run_process, (function, world_size, folder), nprocs=world_size, start_method='fork')
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(world_size)]


def torchrun(folder, *args):
    """Run ``tools/torchrun.py ARGS`` in forked processes, whose workers are forked in turn.

    Returns:
        Exit status, and what all processes wrote.
    """
    output = Path(folder) / 'output.txt'
    process = os.fork()
    if process == 0:
        status = 1
        try:
            start_torchrun(output, '--run-path', '--start-method', 'fork', *map(str, args))
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), output.read_text()


def start_torchrun(output, *args):
    """Be ``tools/torchrun.py`` from here on, and write to a file."""
    with open(output, 'w') as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout = sys.stderr = os.fdopen(2, 'w', buffering=1)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    forget_loggers()
    # Workers would inherit what the launcher does when it is told to end.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    sys.argv = [str(REPOSITORY / 'tools' / 'torchrun.py'), *args]
    runpy.run_path(sys.argv[0], run_name='__main__')


def run_process(rank, function, world_size, folder):
    # Thread pools do not survive a fork.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                            world_size=world_size, timeout=timedelta(minutes=10))
    torch.save(function(rank), folder / f'{rank}.pt')
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
