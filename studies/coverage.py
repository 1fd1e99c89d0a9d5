"""Try detectors of the zoo as teachers and students: what works, what is refused, and why.

Each is built from its own config with untrained weights, made small, and tried on images of noise.
"""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import operator
import os
import os.path as osp
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from functools import reduce
from typing import Callable

import torch
from torch import Tensor

import gkd
from gkd.detectors.config_files import find_file
from gkd.detectors.step import Needs, Step
from gkd.detectors.teacher import Teacher
from gkd.detectors.view import PROBE_SIZE, image_size, probe
from gkd.distiller import Distiller
from gkd.errors import GKDError
from gkd.files import write_atomically
from gkd.frameworks import MMDET_SCOPE, Config, build_detector, logger, mmdet_configs
from gkd.knowledge.build import build_knowledge
from gkd.planning.cost import random_bank
from gkd.planning.door import total_loss
from gkd.progress import without_details
from gkd.randomness import isolated_random_numbers
from gkd.registry import KNOWLEDGE
from studies.door import detections, losses, taught_batch, training_batch
from studies.outcomes import ABSENT, FAULT, MMDETECTION, REFUSED, WORKS, Outcome
from studies.small_models import small_config

METHOD = 'RobustDistillingModule'
STEPS = 2
SECONDS = 900  # until a process is ended
PROTOTYPES = 2  # per class and level


def check_all(pairs: Iterable[tuple[str, str]], folder: str, again: bool = False,
              say=print) -> list[Outcome]:
    """Check pairs, each in a process of its own; what has been checked is not checked again.

    Args:
        pairs: Names of configs, teacher and student.
        folder: Where the outcomes are kept.
        again: Check what has been checked, too.
        say: Called with a line about every pair.
    """
    outcomes = []
    os.makedirs(folder, exist_ok=True)
    for teacher, student in pairs:
        path = osp.join(folder, f'{teacher}__{student}.json'.replace('/', '--'))
        if again or not osp.exists(path):
            write_atomically(path, json.dumps(asdict(check_apart(teacher, student)), indent=1))
        with open(path, encoding='utf-8') as file:
            outcomes.append(Outcome(**json.load(file)))
        say(f'{outcomes[-1].verdict:8} {outcomes[-1].name}  {outcomes[-1].message[:160]}')
    return outcomes


def check_apart(teacher: str, student: str) -> Outcome:
    """Check a pair in a process of its own, which may crash."""
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(check(teacher, student)))
    process.start()
    there.close()
    try:
        outcome = here.recv() if here.poll(SECONDS) else None
    except EOFError:
        outcome = None
    process.kill()
    process.join()
    return outcome or Outcome(teacher, student,
                              message=f'the process ended with status {process.exitcode}')


def check(teacher: str, student: str) -> Outcome:
    """Try a pair: the student alone, then taught, a step of each other method, a test."""
    outcome = Outcome(teacher, student)
    missing = [name for name in dict.fromkeys((teacher, student))
               if find_file(f'{MMDET_SCOPE}{name}.py') is None]
    if missing:
        outcome.verdict = ABSENT
        outcome.message = f'{MMDETECTION} ships no config {" and no config ".join(missing)}'
        return outcome
    logger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        try_pair(outcome)
    except GKDError as error:
        outcome.verdict, outcome.message = REFUSED, without_prefix(error)
    except Exception as error:
        outcome.verdict, outcome.message = FAULT, describe(error)
    return outcome


def try_pair(outcome: Outcome) -> None:
    """Fill in an outcome.

    Raises:
        GKDError: The pair is refused.
        Exception: Something does not work.
    """
    started = time.time()
    small = {name: small_config(name) for name in {outcome.teacher, outcome.student}}
    configs = [small[outcome.teacher], small[outcome.student]]
    model = build(distiller(*configs))
    outcome.build_seconds = round(time.time() - started, 1)
    kind = next(iter(model.knowledge))
    outcome.instances = kind.instances
    outcome.left_out = '' if kind.soft_label is not None else kind.left_out

    plain = build(configs[1])
    batch = batch_of(model)
    with torch.no_grad():
        expected = step(plain, batch)
    taught = step(model, batch)
    outcome.own_losses_equal = all(equal(taught[name], value) for name, value in expected.items())
    outcome.teaches = sorted(taught.keys() - expected.keys())
    train(model, batch)

    outcome.bfloat16 = caught(lambda: teach_in_bfloat16(model, batch))
    outcome.methods = try_methods(model, batch)
    outcome.class_space = caught(lambda: teach_in_class_space(configs, batch))
    outcome.detects = detects(model, batch)
    if not outcome.detects:
        raise RuntimeError('a test gives no results')
    tried = {**outcome.methods, 'class space': outcome.class_space, 'bfloat16': outcome.bfloat16}
    faults = [f'{name}: {said}' for name, said in tried.items() if said.startswith('FAULT')]
    if not outcome.own_losses_equal:
        faults.append('the student\'s own losses differ from those of a plain training')
    outcome.verdict, outcome.message = (FAULT, '; '.join(faults)) if faults else (WORKS, '')


def distiller(teacher: dict, student: dict, method: str = METHOD, **settings) -> dict:
    """Config of a distiller with a method."""
    return dict(type='Distiller', teacher=dict(config=copy.deepcopy(teacher), checkpoint=None),
                student=dict(config=copy.deepcopy(student)),
                knowledge=[dict(type=method, **settings)],
                prototypes=dict(type='PrototypeGenerationModule'))


def build(config: dict) -> torch.nn.Module:
    """Build a detector as a training does, from the same random numbers each time."""
    torch.manual_seed(0)
    model = build_detector(Config(dict(model=copy.deepcopy(config))).model)
    with without_details():
        model.init_weights()
    for detector in [model.student, model.teacher] if isinstance(model, Distiller) else [model]:
        calm(detector)
    model.train()
    if isinstance(model, Distiller) and model.needs.bank:
        with isolated_random_numbers():
            model.bank = random_bank(model.pair, PROTOTYPES, model.frozen.class_channels)
    return model


@torch.no_grad()
def calm(detector: torch.nn.Module) -> None:
    """Give normalisation layers the statistics of noise where maps would explode untrained.

    With its initial weights, whose kernels are scaled up, the maps of DetectoRS overflow.
    """
    if 'DetectoRS' not in type(detector.backbone).__name__:
        return
    norms = [module for module in detector.modules()
             if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    detector.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    generator = torch.Generator().manual_seed(0)
    detector.extract_feat(torch.randn(2, 3, PROBE_SIZE, PROBE_SIZE, generator=generator))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def batch_of(model: Distiller) -> dict:
    """A training batch of noise, with whatever ground truth the student wants."""
    size, other = image_size(model.student), image_size(model.teacher)
    # A student that takes images of any size takes those that the teacher is made for.
    view = probe(model.student, 'student', max(size, other) if size == PROBE_SIZE else size)
    return training_batch(model.student, view, model.pair.num_classes)


def step(model: torch.nn.Module, batch: dict) -> dict:
    """Losses of a training step."""
    torch.manual_seed(1)
    model.train()
    return losses(model, copy.deepcopy(batch))


def train(model: torch.nn.Module, batch: dict, steps: int = STEPS) -> None:
    """Take some steps; raise if a loss or a gradient is no finite number."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    for _ in range(steps):
        optimizer.zero_grad()
        terms = step(model, batch)
        broken = [name for name, value in terms.items() if not is_number(value)]
        if broken:
            raise ArithmeticError(f'{", ".join(broken)}: no number')
        total_loss(model, terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()


def is_number(value) -> bool:
    """Whether a loss, or each in a list, is a number."""
    if isinstance(value, (list, tuple)):
        return all(map(is_number, value))
    return not bool(torch.as_tensor(value).isnan().any())


def equal(value, expected) -> bool:
    """Whether losses, or lists of them, are the same to the last bit."""
    if isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(map(equal, value, expected))
    return torch.equal(value, expected) if isinstance(expected, Tensor) else value == expected


def try_methods(model: Distiller, batch: dict) -> dict[str, str]:
    """What each other method says to a step: nothing if it works, its refusal, or a fault."""
    said, kinds = {}, {}
    for name in sorted(KNOWLEDGE.module_dict):
        if name != METHOD and KNOWLEDGE.get(name).__module__.startswith('gkd.'):
            said[name] = caught(lambda name=name: kinds.update(
                {name: build_knowledge(dict(type=name), model.pair)}))
    # One step with what all methods need; if it fails, one for each, to learn which one failed.
    model.needs = reduce(operator.or_, (kind.needs for kind in kinds.values()), Needs())
    steps = []
    shared = not caught(lambda: steps.append(observed(model, batch)))
    for name, kind in kinds.items():
        if not shared:
            model.needs = kind.needs
        said[name] = caught(lambda kind=kind: require_finite(
            kind(steps[0] if shared else observed(model, batch))))
    return said


def teach_in_class_space(configs: list[dict], batch: dict) -> None:
    """Take a step in the class space; raise if a loss or a gradient is no finite number.

    Args:
        configs: `model` of teacher and student.
        batch: What the student trains on.
    """
    train(build(distiller(*configs, global_knowledge=dict(space='classes'))), batch, steps=1)


def teach_in_bfloat16(model: Distiller, batch: dict) -> None:
    """Take a step with the teacher in bfloat16; raise if a loss or a gradient is not finite.

    Raises:
        GKDError: The teacher falls back to full precision.
    """
    exact = model.frozen
    model.frozen = Teacher(exact.exact, 'bfloat16')
    try:
        if model.frozen.dtype is None:
            raise GKDError('the teacher falls back to full precision')
        train(model, batch, steps=1)
    finally:
        model.frozen = exact


def observed(model: Distiller, batch: dict) -> Step:
    """A step of a distiller as both detectors saw it."""
    torch.manual_seed(1)
    return model.observe(taught_batch(model, copy.deepcopy(batch)))[1]


def require_finite(terms: dict[str, Tensor]) -> None:
    """Raise ArithmeticError if a loss is no finite number."""
    broken = [name for name, value in terms.items() if not value.isfinite()]
    if broken:
        raise ArithmeticError(f'{", ".join(broken)}: no finite number')


def caught(call: Callable[[], object]) -> str:
    """Call; return nothing, the refusal, or FAULT with the exception."""
    try:
        call()
    except GKDError as error:
        return without_prefix(error)
    except Exception as error:
        return f'FAULT {describe(error)}'
    return ''


@torch.no_grad()
def detects(model: torch.nn.Module, batch: dict) -> bool:
    """Whether a test of one image gives results."""
    model.eval()
    return len(detections(model, copy.deepcopy(batch))) == 1


def without_prefix(error: Exception) -> str:
    """A message without the prefix of mmcv's registry and without local folders."""
    text = str(error).replace(mmdet_configs() + os.sep, 'mmdet::')
    return text[len('Distiller: '):] if text.startswith('Distiller: ') else text


def describe(error: Exception) -> str:
    """An exception with the last place of this package that it came through."""
    package = osp.dirname(gkd.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(package)
           and not frame.filename.endswith('coverage.py')]
    frame = (own or frames)[-1]
    place = f'{osp.relpath(frame.filename, osp.dirname(package))}:{frame.lineno}'
    return f'{type(error).__name__}: {error} ({place})'
