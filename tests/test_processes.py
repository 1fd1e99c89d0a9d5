"""Several processes: one bank whatever their number, one end, and one training after a restart."""

import json
import os
import re
import signal
import socket
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.parallel_steps import CPU, build, gradients, part_of
from helpers.running import REPOSITORY, in_processes, run_tool, torchrun
from mmcv import Config
from mmcv.utils import get_logger
from mmdet.models import build_detector
from torch.utils.data import DataLoader

from gkd.prototypes import PrototypeHook
from gkd.running.device import wrap

sys.path.append(str(REPOSITORY / 'tests' / 'faults'))

import kill  # noqa: E402


@pytest.mark.parametrize('world_size', [2, 4])
def test_bank_is_that_of_one_process(world_size, tmp_path):
    """Bit for bit, though every process has statistics of its own, and a class a single image."""
    sizes = tiny_data.SIZES + tiny_data.SIZES[:1]
    annotations = tiny_data.write_data(tmp_path, sizes=sizes, boxes_per_image=1)
    dataset = Config(dict(data=tiny_data.dataset(annotations, tiny_data.pipelines()[1]))).data

    def generate(rank):
        torch.manual_seed(0)
        distiller = build_detector(Config(dict(model=small.distiller(
            small.retinanet(24), small.retinanet(), num_prototypes=2, batch_size=2))).model)
        distiller.student.backbone.bn1.running_mean += rank
        PrototypeHook(dataset).before_train_epoch(SimpleNamespace(
            model=distiller, work_dir=str(tmp_path / f'{dist.get_world_size()}'), epoch=0,
            max_iters=2, data_loader=DataLoader([0]), rank=rank, logger=get_logger('mmdet')))
        return vars(distiller.bank)

    alone, = in_processes(tmp_path / 'alone', generate, world_size=1)
    offsets = alone['offsets'][0].tolist()
    assert offsets == [0, 2, 4, 6]
    images = [{image for image, *_ in json.loads(alone['metadata']['origins'])[0][begin:end]}
              for begin, end in zip(offsets, offsets[1:])]
    assert min(map(len, images)) == 1
    for bank in in_processes(tmp_path / 'group', generate, world_size):
        assert kill.same(alone, bank)


@pytest.mark.slow
def test_four_processes_give_the_gradients_of_one(tmp_path):
    """See tests/test_distributed.py for what makes this exact."""
    data = small.batch(num_images=4)

    def quarter(rank):
        return gradients(wrap(build('one_stage', dict(robust=False)), CPU),
                         part_of(data, slice(rank, rank + 1)))

    expected_losses, expected = gradients(wrap(build('one_stage', dict(robust=False)), CPU), data)
    for losses, found in in_processes(tmp_path / 'group', quarter, world_size=4):
        assert losses == pytest.approx(expected_losses, rel=1e-4)
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize('how, says', [
    ('killed', ''), ('raise', 'RuntimeError: something nobody has thought of'), ('hang', None)])
def test_one_process_that_fails_ends_the_other(how, says, tmp_path):
    config = kill.write_experiment(tmp_path / 'experiment', family='one_stage')
    with open(config, 'a') as file:
        file.write(f'custom_hooks += [dict(type="FailOnce", rank=1, step=1, how={how!r})]\n')

    def child(rank):
        output = open(tmp_path / f'output_{rank}', 'w')
        os.dup2(output.fileno(), 2)
        torch.set_num_threads(1)
        dist.init_process_group(
            'gloo', init_method=f'file://{tmp_path}/store', rank=rank, world_size=2,
            timeout=timedelta(seconds=20 if how == 'hang' else 1800))
        status, _, stderr = run_tool('train', config, '--work-dir', tmp_path / 'work')
        output.write(stderr)
        output.flush()
        os._exit(status)

    started = time.time()
    children = {}
    for rank in range(2):
        process = os.fork()
        if process == 0:
            try:
                child(rank)
            finally:
                os._exit(1)
        children[rank] = process
    first = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    if how == 'hang':
        os.kill(children[1], signal.SIGKILL)
    other = os.waitstatus_to_exitcode(os.waitpid(children[1], 0)[1])
    assert time.time() - started < 1200  # the time-out has not been waited for
    text = (tmp_path / 'output_0').read_text()
    assert first == 1 and 'another process has ended or does not answer' in text
    assert 'Traceback' not in text
    # On a slow machine the one that hangs may have given up before.
    assert other in {'killed': [-signal.SIGKILL], 'raise': [1], 'hang': [-signal.SIGKILL, 1]}[how]
    if says:
        assert says in (tmp_path / 'output_1').read_text()


@pytest.mark.slow
def test_elastic_restart_goes_on_exactly(tmp_path):
    config = kill.write_experiment(tmp_path / 'experiment', family='one_stage')
    reference, work_dir = tmp_path / 'reference', tmp_path / 'elastic'
    assert kill.train(config, reference, processes=2)[0] == 0
    failing = tmp_path / 'experiment' / 'failing.py'
    failing.write_text(f'_base_ = [{config!r}]\ncustom_imports = dict(imports=["kill"])\n'
                       'custom_hooks = [dict(type="Witness", priority="ABOVE_NORMAL"), '
                       'dict(type="FailOnce", rank=1, step=5)]\n')
    status, output = torchrun(
        tmp_path, '--standalone', '--nproc_per_node', 2, '--max_restarts', 1,
        REPOSITORY / 'tools' / 'train.py', failing, '--work-dir', work_dir,
        '--launcher', 'pytorch')
    assert status == 0, output
    assert (work_dir / 'failed').exists()
    # The first process may still have been writing the checkpoint of step 5.
    assert re.search('resumed epoch 1, iter [35]', output), output
    assert kill.differences(reference, work_dir, processes=2) == []


@pytest.mark.parametrize('status, starts', [(2, 1), (1, 3)])
def test_what_the_user_must_mend_is_not_tried_again(status, starts, tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text(f'import os\nwith open({str(tmp_path / "starts")!r}, "a") as file:\n'
                    f'    file.write(os.environ["RANK"])\nos._exit({status})\n')
    ended, output = torchrun(tmp_path, '--standalone', '--nproc_per_node', 1, '--max_restarts', 2,
                             '--monitor_interval', 0.1, tool)
    assert ended == status, output
    assert (tmp_path / 'starts').read_text() == '0' * starts


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        status, output = torchrun(
            tmp_path, '--nnodes', 1, '--node_rank', 0, '--master_addr', '127.0.0.1',
            '--master_port', taken.getsockname()[1], '--nproc_per_node', 1, 'train.py')
    assert status == 2
    assert 'error: the port at which the processes meet is taken' in output
    assert 'set MASTER_PORT' in output and 'Traceback' not in output
