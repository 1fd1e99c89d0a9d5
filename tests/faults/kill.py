"""Kill trainings at random points, start them again, and compare with one that was left alone.

    OMP_NUM_THREADS=1 python tests/faults/kill.py --points 20

Every training is the command `tools/train.py CONFIG --work-dir DIR` in a process of its own on
tiny data; killed means SIGKILL. The training that is started again must see the same images in the
same order and end with the same losses, weights, optimiser, metrics and prototypes, to the last
bit.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Optional

import gkd  # noqa: F401  (must come before anything imports mmdet)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
import torch.distributed as dist
from helpers import tiny_data
from helpers.running import run_tool
from mmcv.runner import HOOKS, Hook
from mmdet.datasets import CocoDataset
from mmdet.models.detectors import TwoStageDetector

import gkd.files
import gkd.prototypes.generation as generation
import gkd.report.page  # noqa: F401  (trainings would import it one by one)
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.prototypes import PrototypeBank
from gkd.work_dir import checkpoints

# Where a training can be killed: the function that is called there.
PLACES = {
    'step': (torch.optim.SGD, 'step'),
    'writing': (gkd.files.os, 'fsync'),
    'renamed': (gkd.files.os, 'replace'),
    'prototypes': (generation, 'batch_features'),
    'evaluation': (TwoStageDetector, 'simple_test'),
    'evaluated': (CocoDataset, 'evaluate'),
}
HANGS = 1200  # seconds


@dataclass
class Fault:
    """Where a training is killed: at a call of a place, or after some seconds.

    Attributes:
        place: One of ``PLACES``, or ``'time'``.
        when: Number of the call, from 1, or seconds.
    """

    place: str
    when: float


@HOOKS.register_module()
class Witness(Hook):
    """Write every step's images and exact losses to ``WORK_DIR/steps_RANK.jsonl``.

    Register it after the optimiser's hook, and before a checkpoint says that the step is done.
    """

    def after_train_iter(self, runner) -> None:
        """Write a line."""
        metas = runner.data_batch['img_metas'].data[0]
        line = dict(epoch=runner.epoch, step=runner.inner_iter, iter=runner.iter,
                    lr=runner.current_lr(),
                    images=[[meta['ori_filename'], bool(meta['flip'])] for meta in metas],
                    losses={name: value.hex() for name, value in
                            runner.outputs['log_vars'].items()})
        with open(Path(runner.work_dir) / f'steps_{runner.rank}.jsonl', 'a') as file:
            file.write(json.dumps(line) + '\n')


@HOOKS.register_module()
class FailOnce(Hook):
    """Let one process fail after a step, the first time that it comes there.

    Args:
        rank: The process.
        step: The step, from 1.
        how: ``'killed'``, ``'raise'``, or ``'hang'``.
    """

    def __init__(self, rank: int, step: int, how: str = 'killed'):
        self.rank = rank
        self.step = step
        self.how = how

    def before_train_iter(self, runner) -> None:
        """Fail."""
        mark = Path(runner.work_dir) / 'failed'
        if runner.rank != self.rank or runner.iter != self.step or mark.exists():
            return
        mark.write_text('')
        if self.how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == 'hang':
            time.sleep(1000)
        raise RuntimeError('something nobody has thought of')


def write_experiment(folder: Path, family: str = 'two_stage', workers: int = 0) -> str:
    """Write data, detectors and a distillation config; returns its path.

    Two epochs of six steps, a checkpoint after every second one; the best epoch is kept.
    """
    folder.mkdir(parents=True)
    tiny_data.write_data(folder, sizes=tiny_data.SIZES + ((100, 60), (128, 96)))
    _, config = tiny_data.write_pair(folder, family, batch_size=1)
    with open(config, 'a') as file:
        file.write('checkpoint_config = dict(interval=1, inside_epoch=2, max_keep_ckpts=2)\n'
                   'evaluation = dict(interval=1, metric="bbox", save_best="bbox_mAP")\n'
                   'log_config["interval"] = 1\n'
                   'lr_config = dict(policy="CosineAnnealing", min_lr=0, by_epoch=False)\n'
                   'custom_hooks = [dict(type="Witness", priority="ABOVE_NORMAL")]\n'
                   f'data["workers_per_gpu"] = {workers}\nseed = 1\n')
    return config


def train(config: str, work_dir: Path, fault: Optional[Fault] = None,
          processes: int = 1) -> tuple[int, Counter]:
    """Run a training to its end or to its fault.

    Returns:
        The first process's exit status or, negative, the signal that killed it, and how often it
        has come to every place.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    counts = work_dir / 'counts.json'
    with tempfile.TemporaryDirectory() as store:
        children = {}
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                child_main(config, work_dir, fault, rank, processes, store, counts)
            children[child] = rank
        if fault is not None and fault.place == 'time':
            time.sleep(fault.when)
            for child in children:
                os.kill(child, signal.SIGKILL)
        statuses = {}
        while children:
            child, status = os.wait()
            statuses[children.pop(child)] = os.waitstatus_to_exitcode(status)
            if any(statuses.values()):
                for other in children:
                    os.kill(other, signal.SIGKILL)
    reached = json.loads(counts.read_text()) if counts.exists() else {}
    return statuses[0], Counter(reached)


def child_main(config, work_dir, fault, rank, processes, store, counts):
    """What a forked process does; it never returns."""
    status = 1
    try:
        output = open(work_dir / f'output_{rank}.txt', 'a')
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        # One that hangs, longer than processes wait for each other, says where and fails.
        faulthandler.dump_traceback_later(HANGS, exit=True, file=output)
        torch.set_num_threads(1)  # thread pools do not survive a fork
        cv2.setNumThreads(0)
        reached = Counter()
        for place in PLACES:
            kill_at(place, fault, reached)
        if processes > 1:
            dist.init_process_group('gloo', init_method=f'file://{store}/store', rank=rank,
                                    world_size=processes, timeout=timedelta(minutes=10))
        status, _, stderr = run_tool('train', config, '--work-dir', work_dir)
        print(stderr, file=output, flush=True)
        if rank == 0:
            counts.write_text(json.dumps(reached))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_at(place: str, fault: Optional[Fault], reached: Counter) -> None:
    """Count the calls of a place, and kill this process at one of them."""
    owner, name = PLACES[place]
    function = getattr(owner, name)

    def counted(*args, **kwargs):
        reached[place] += 1
        last = fault is not None and fault.place == place and reached[place] == fault.when
        if last and place == 'writing':
            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        if last and place != 'renamed':
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def choose_faults(number: int, counts: Counter, seconds: float, seed: int = 0) -> list[Fault]:
    """Draw faults: every place in turn, and every third at a random time.

    Args:
        number: How many.
        counts: How often a whole training comes to every place.
        seconds: How long it takes.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    faults = []
    for position in range(number):
        if position % 3 == 2:
            faults.append(Fault('time', rng.uniform(0.1, 0.8) * seconds))
        else:
            place = list(PLACES)[(position - position // 3) % len(PLACES)]
            faults.append(Fault(place, rng.randint(1, counts[place])))
    return faults


def steps_of(work_dir: Path, processes: int = 1) -> tuple[dict, list[str]]:
    """Steps by rank, epoch and place in it; and complaints about steps that were repeated."""
    steps, complaints = {}, []
    for rank in range(processes):
        path = work_dir / f'steps_{rank}.jsonl'
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                step = json.loads(line)
            except ValueError:
                continue  # killed while the witness wrote
            key = rank, step['epoch'], step['step']
            if steps.setdefault(key, step) != step:
                complaints.append(f'step {key} differs when it is repeated')
    return steps, complaints


def differences(reference: Path, work_dir: Path, processes: int = 1) -> list[str]:
    """Compare a training that was interrupted with one that was not.

    Returns:
        What differs, in words; empty if nothing does.
    """
    expected, _ = steps_of(reference, processes)
    found, complaints = steps_of(work_dir, processes)
    complaints += [f'step {key}: {found.get(key)} instead of {step}'
                   for key, step in expected.items() if found.get(key) != step]
    names = {kind: sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*')
                          if path.suffix in ('.pth', '.safetensors', '.tmp'))
             for kind, folder in (('expected', reference), ('found', work_dir))}
    if names['expected'] != names['found']:
        complaints.append(f'files {names["found"]} instead of {names["expected"]}')
        return complaints
    for name in names['expected']:
        if name.endswith('.pth'):
            one, other = (comparable(load_checkpoint_file(folder / name))
                          for folder in (reference, work_dir))
            complaints += [f'{name}: {key} differs' for key in one.keys() | other.keys()
                           if not same(one.get(key), other.get(key))]
        elif 'epoch' in name:
            one, other = (vars(PrototypeBank.load(folder / name))
                          for folder in (reference, work_dir))
            complaints += [f'{name}: {key} differs' for key in one
                           if not same(one[key], other[key])]
    evaluations = [(folder / 'evaluation.json').read_text() for folder in (reference, work_dir)]
    if evaluations[0] != evaluations[1]:
        complaints.append(f'metrics {evaluations[1]} instead of {evaluations[0]}')
    return complaints


def comparable(checkpoint: dict) -> dict:
    """Parts of a checkpoint by name, without times and places."""
    meta = {name: value for name, value in checkpoint['meta'].items()
            if name not in ('time', 'config', 'hook_msgs')}
    messages = checkpoint['meta'].get('hook_msgs', {})
    return {**checkpoint['state_dict'], **checkpoint['optimizer'], **meta,
            'best': messages.get('best_score')}


def same(one, other) -> bool:
    """Whether two nests of tensors and numbers are equal to the last bit."""
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and \
            all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def run(folder: Path, points: int, seed: int = 0, **settings) -> tuple[list[Fault], int, list]:
    """Inject faults, one a training.

    Args:
        folder: Empty or missing; everything is written there.
        points: How many faults.
        seed: Seed of the choice of faults.
        **settings: ``processes``, and those of :func:`write_experiment`.

    Returns:
        The faults, how many steps were compared, and what differed.
    """
    processes = settings.pop('processes', 1)
    config = write_experiment(folder / 'experiment', **settings)
    started = time.time()
    status, counts = train(config, folder / 'reference', processes=processes)
    assert status == 0, (folder / 'reference' / 'output_0.txt').read_text()
    faults = choose_faults(points, counts, time.time() - started, seed)
    reference, _ = steps_of(folder / 'reference', processes)
    complaints = []
    for number, fault in enumerate(faults, 1):
        work_dir = folder / f'killed_{number}'
        status, _ = train(config, work_dir, fault, processes)
        while status == 0 and fault.place == 'time':  # too late: this one was faster
            shutil.rmtree(work_dir)
            fault.when /= 2
            status, _ = train(config, work_dir, fault, processes)
        found = [os.path.basename(os.path.realpath(path)) for path in checkpoints(work_dir)]
        again, _ = train(config, work_dir, processes=processes)
        wrong = [] if again == 0 else [f'the second run ended with status {again}']
        wrong += differences(folder / 'reference', work_dir, processes) if again == 0 else []
        complaints += [f'{fault}: {text}' for text in wrong]
        when = f'{fault.when:.2f} s' if fault.place == 'time' else f'call {fault.when}'
        print(f'{number:3} {fault.place:11} {when:8} status {status:3}, went on from '
              f'{found[0] if found else "the beginning":20} '
              f'{"equal" if not wrong else "DIFFERENT: " + wrong[0]}', flush=True)
    return faults, len(reference) * len(faults), complaints


def main() -> None:
    """Inject faults and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--points', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--workers', type=int, default=0, help='processes that load images')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults, steps, complaints = run(Path(folder) / 'faults', args.points, args.seed,
                                        processes=args.processes, workers=args.workers)
    places = Counter(fault.place for fault in faults)
    print(f'{len(faults)} faults injected '
          f'({", ".join(f"{count} {place}" for place, count in places.items())}), '
          f'{steps} steps compared, {len(complaints)} differences')
    sys.exit(bool(complaints))


if __name__ == '__main__':
    main()
