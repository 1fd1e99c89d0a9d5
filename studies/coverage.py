"""Try detectors of the zoo as teachers and students: what works, what is refused, and why.

Each is built from its own config with untrained weights, and tried on small images. To save time,
backbones have one block per stage if their class counts blocks, and all parts have an eighth of
their channels if backbone and heads allow it.
"""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import operator
import os
import os.path as osp
import re
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Callable, Optional

import torch
from mmdet.models.backbones import SSDVGG, ResNet
from torch import Tensor

import gkd
from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource, drop_pretrained
from gkd.detectors.step import Needs, Step
from gkd.detectors.view import PROBE_SIZE, image_size, look
from gkd.distiller import Distiller
from gkd.errors import GKDError
from gkd.files import write_atomically
from gkd.frameworks import (
    BACKBONES,
    MMDET_SCOPE,
    Config,
    ConfigDict,
    build_detector,
    logger,
    mmdet_configs,
)
from gkd.installed import installed_version
from gkd.knowledge.build import build_knowledge
from gkd.planning.cost import random_bank
from gkd.planning.door import total_loss
from gkd.progress import without_details
from gkd.randomness import isolated_random_numbers
from gkd.registry import KNOWLEDGE
from studies.door import (
    PAIRS,
    SELF_PAIRS,
    detections,
    losses,
    taught_batch,
    training_batch,
    with_small_batches,
)

WORKS, REFUSED, ABSENT, FAULT = 'works', 'refused', 'absent', 'fault'
METHOD = 'RobustDistillingModule'
STEPS = 2
NARROWER = 8
CHANNELS = re.compile(r'(channels?|planes|dims|num_feats|filters)$')
SECONDS = 900  # until a process is ended
PROTOTYPES = 2  # a class
PROPOSALS = 64  # an image
MMDETECTION = f'MMDetection {installed_version("mmdet")}'


INTRODUCTION = '''\
# Detectors

What `python tools/check_detectors.py` found of detectors that MMDetection ships a config of, each
as its own teacher, then in pairs of different ones. It tries those of the MMDetection that is
installed and writes their tables into `work_dirs/check_detectors/mmdet2/detectors.md` or
`mmdet3/detectors.md`. The detectors are the same, by the names that each MMDetection gives to
their configs; those of MMDetection 3 end with kinds that 2 does not have. Each pair

- trains its student alone and taught, from the same random numbers: the student's own losses are
  the same to the last bit,
- takes two steps of the distilling module with its default settings, and one of each of the ten
  other methods,
- takes a step of the distilling module in the class space, gradients included,
- tests the student on an image.

Weights are untrained, images are noise of 256 pixels (or what the head is made for), backbones
have one block a stage and an eighth of the channels where they can, heads sample and keep at most
64 boxes: this tells what runs, not what is gained. "At" tells where the student is taught: at the
positives that it trains on, or at the ground truth; soft labels of rows with the latter are taught
at the cells that it trains as objects. Global and local knowledge are taught in every row that has
an entry there. "Class space" tells whether `global_knowledge=dict(space='classes')` works: not
where the teacher's head has no layers that read classes from maps alone, or where teacher and
student do not predict at every place, nor both classify boxes.
'''


@dataclass
class Outcome:
    """What was found of a pair.

    Attributes:
        teacher: Its config's name.
        student: Likewise.
        verdict: ``'works'``, ``'refused'`` with the reason in ``message``, ``'absent'`` if
            MMDetection ships no such config, or ``'fault'``.
        message: The refusal, or the exception and where it came from.
        teaches: Loss terms of the distilling module with its default settings.
        instances: ``'positives'`` or ``'gt'``: the boxes at which the module teaches.
        left_out: Why soft labels are left out; empty if they are taught.
        methods: Message of each other method; empty if the method works.
        class_space: Message of the module in the class space; empty likewise.
        own_losses_equal: Whether the student's own losses are those of a plain training, bit by
            bit.
        detects: Whether the student detects in a test afterwards.
        build_seconds: Time until the pair was built or refused.
    """

    teacher: str
    student: str
    verdict: str = FAULT
    message: str = ''
    teaches: list[str] = field(default_factory=list)
    instances: str = ''
    left_out: str = ''
    methods: dict[str, str] = field(default_factory=dict)
    class_space: str = ''
    own_losses_equal: Optional[bool] = None
    detects: Optional[bool] = None
    build_seconds: float = 0.0

    @property
    def name(self) -> str:
        """Name of the pair."""
        return pair_name(self.teacher, self.student)


def pair_name(teacher: str, student: str) -> str:
    """Name of a pair; that of a detector with itself is the detector's."""
    return teacher if teacher == student else f'{teacher} -> {student}'


def pair_of(name: str) -> tuple[str, str]:
    """Teacher and student of a name that :func:`pair_name` gives.

    Example:
        >>> pair_of('a -> b'), pair_of('a')
        (('a', 'b'), ('a', 'a'))
    """
    teacher, _, student = name.partition(' -> ')
    return teacher, student or teacher


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

    outcome.methods = try_methods(model, batch)
    outcome.class_space = caught(lambda: teach_in_class_space(configs, batch))
    outcome.detects = detects(model, batch)
    if not outcome.detects:
        raise RuntimeError('a test gives no results')
    tried = {**outcome.methods, 'class space': outcome.class_space}
    faults = [f'{name}: {said}' for name, said in tried.items() if said.startswith('FAULT')]
    if not outcome.own_losses_equal:
        faults.append('the student\'s own losses differ from those of a plain training')
    outcome.verdict, outcome.message = (FAULT, '; '.join(faults)) if faults else (WORKS, '')


def small_config(name: str) -> dict:
    """The small `model` config of a detector of MMDetection."""
    source = DetectorSource.parse(dict(config=f'{MMDET_SCOPE}{name}.py'), 'config')
    return made_small(source.model_config())


def made_small(model: ConfigDict) -> dict:
    """A detector's `model` config with nothing to download, narrower if it can be."""
    drop_pretrained(model)
    if 'teacher_ckpt' in model:  # distils by itself
        model.teacher_ckpt = None
    if 'teacher_config' in model:
        model.teacher_config = Config.fromfile(model.teacher_config)
        drop_pretrained(model.teacher_config.model)
    with_small_batches(model)
    without_other_processes(model)
    with_few_proposals(model)
    with_few_blocks(model.get('backbone', {}))
    slim = narrower(model)
    try:
        with isolated_random_numbers(), without_details():
            look(build_detector(copy.deepcopy(slim)), 'student')
    except Exception:
        return model
    return slim


def without_other_processes(entry) -> None:
    """Replace synchronised by plain batch normalisation, at every depth."""
    if isinstance(entry, dict):
        if entry.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN'):
            entry['type'] = 'BN'
        entry = list(entry.values())
    if isinstance(entry, (list, tuple)):
        for value in entry:
            without_other_processes(value)


def with_few_proposals(entry) -> None:
    """Let heads, at every depth, sample and keep few proposals: most of the time goes there."""
    if isinstance(entry, dict):
        for name in ('nms_pre', 'max_per_img', 'num', 'num_proposals'):
            if type(entry.get(name)) is int and (name != 'num' or 'pos_fraction' in entry):
                entry[name] = min(entry[name], PROPOSALS)
        if entry.get('clip_border') is False:
            # Untrained QueryInst's boxes lie beyond the image, where no mask can be pasted.
            entry['clip_border'] = True
        entry = list(entry.values())
    if isinstance(entry, (list, tuple)):
        for value in entry:
            with_few_proposals(value)


def with_few_blocks(backbone: dict) -> None:
    """Set a backbone up with one block a stage, where its settings count them."""
    kind = backbone.get('type')
    if kind == 'SwinTransformer':
        backbone.update(depths=[1] * 4)
    elif kind in ('PyramidVisionTransformer', 'PyramidVisionTransformerV2'):
        backbone.update(num_layers=[1] * 4)
    elif kind == 'CSPDarknet':
        backbone.update(deepen_factor=0.1)
    elif kind == 'HourglassNet':
        backbone.update(stage_blocks=[1] * 6)
    elif kind == 'HRNet':
        for stage in backbone.extra.values():
            stage.update(num_modules=1, num_blocks=[1] * len(stage.num_blocks))
    elif kind == 'SSDVGG':
        # It returns what the fourth stage's last layer makes, and the last layer of all.
        layers = [2 * blocks + 1 for blocks in SSDVGG.arch_settings[backbone.depth]]
        backbone.update(out_feature_indices=(sum(layers[:4]) - 2, sum(layers) + 3))


def narrower(model: dict) -> dict:
    """A config with an eighth of the channels, if the backbone allows it."""
    model = copy.deepcopy(model)
    backbone = model.get('backbone', {})
    kind = BACKBONES.get(backbone.type) if backbone else None
    if kind is None or 'shared_head' in model.get('roi_head', {}) or 'teacher_backbone' in model:
        return model
    if model.get('as_two_stage') or model.type == 'ConditionalDETR':
        return model  # they describe boxes by 256 numbers, whatever the width
    in_channels = copy.deepcopy(first_neck(model).get('in_channels'))
    if 'decoder' in model:  # MMDetection 3's transformers, whose heads take 256 by default
        model['bbox_head'].setdefault('embed_dims', 256)
    model = divided({**model, 'backbone': {}})
    neck = first_neck(model)
    if 'rfp_backbone' in neck:
        neck['rfp_backbone'].update(base_channels=64 // NARROWER)
    if issubclass(kind, ResNet) and 'arch' not in backbone:
        backbone.update(base_channels=64 // NARROWER)
        backbone = divided(backbone)
    elif backbone.type in ('SwinTransformer', 'PyramidVisionTransformer'):
        backbone.update(embed_dims=backbone.get('embed_dims', 64) // NARROWER)
    elif backbone.type == 'CSPDarknet':
        backbone.update(widen_factor=backbone.widen_factor / NARROWER)
    else:
        if backbone.type == 'HourglassNet':
            backbone.update(feat_channel=256 // NARROWER, stage_channels=[256 // NARROWER] * 6)
        if in_channels is not None:
            neck['in_channels'] = in_channels
    model['backbone'] = backbone
    return ConfigDict(model)


def first_neck(model: dict) -> dict:
    """The part of a neck that the backbone feeds; some have several."""
    neck = model.get('neck') or {}
    return neck[0] if isinstance(neck, (list, tuple)) else neck


def divided(entry):
    """Divide all channel counts, at every depth, by ``NARROWER``; set ``num_groups`` to 4."""
    if isinstance(entry, dict):
        return {key: fewer(value) if CHANNELS.search(key) else 4 if key == 'num_groups'
                else divided(value) for key, value in entry.items()}
    return [divided(value) for value in entry] if isinstance(entry, (list, tuple)) else entry


def fewer(value):
    """A number of channels, or several, divided."""
    if isinstance(value, (list, tuple)):
        return [fewer(inner) for inner in value]
    return value // NARROWER if type(value) is int and value >= 64 else value


def shorten_backbones() -> None:
    """Let backbones of this process have one block a stage, where their class counts blocks."""
    for kind in BACKBONES.module_dict.values():
        settings = getattr(kind, 'arch_settings', None)
        if isinstance(settings, dict):
            kind.arch_settings = {depth: one_block_a_stage(value)
                                  for depth, value in settings.items()}


def one_block_a_stage(setting):
    """A backbone's entry ``(block, counts)``, ``(counts, channels)`` or counts, with 1 each."""
    if isinstance(setting, tuple) and all(type(count) is int for count in setting):
        return (1,) * len(setting)
    if isinstance(setting, tuple) and len(setting) == 2:
        counts = [isinstance(part, tuple) and all(type(count) is int for count in part)
                  for part in setting]
        return tuple(tuple(1 for _ in part) if is_counts else part
                     for part, is_counts in zip(setting, counts))
    return setting


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
    view = look(model.student, 'student', max(size, other) if size == PROBE_SIZE else size)
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


def write_tables(outcomes: list[Outcome], folder: str) -> str:
    """Write ``detectors.md`` and ``detectors.json`` into a folder.

    Returns:
        How many of them work, in a line.
    """
    write_atomically(osp.join(folder, 'detectors.json'),
                     json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    write_atomically(osp.join(folder, 'detectors.md'), markdown(outcomes))
    counts = {verdict: sum(outcome.verdict == verdict for outcome in outcomes)
              for verdict in (WORKS, REFUSED, ABSENT, FAULT)}
    return (f'{counts[WORKS]} of {len(outcomes)} work, {counts[REFUSED]} are refused, '
            f'{counts[ABSENT]} do not exist, {counts[FAULT]} fail; the table: '
            f'{osp.join(folder, "detectors.md")}')


def markdown(outcomes: list[Outcome]) -> str:
    """A page: tables of single detectors and of pairs."""
    tables = [INTRODUCTION]
    for title, own, listed in (('detectors, each with itself', True, len(SELF_PAIRS)),
                               ('pairs', False, len(PAIRS))):
        chosen = [outcome for outcome in outcomes if (outcome.teacher == outcome.student) == own]
        if not chosen:
            continue
        works = sum(outcome.verdict == WORKS for outcome in chosen)
        rest = f' {listed - len(chosen)} more are listed and have not been tried.' \
            if len(chosen) < listed else ''
        tables.append('\n'.join([
            f'## {MMDETECTION}: {title}\n', f'{works} of {len(chosen)} work.{rest}\n',
            '| config | soft labels | at | class space | other methods | what is not, and why |',
            '| --- | --- | --- | --- | --- | --- |', *map(row, chosen)]) + '\n')
    return '\n'.join(tables)


def row(outcome: Outcome) -> str:
    """A row of the table."""
    if outcome.verdict != WORKS:
        return f'| {outcome.name} | | | | | **{outcome.verdict}**: {cell(outcome.message)} |'
    refused = {name for name, said in outcome.methods.items() if said}
    notes = [f'soft labels: {outcome.left_out.rstrip(".")}'] if outcome.left_out else []
    if refused:
        notes.append(f'refused: {", ".join(sorted(refused))}')
    soft = 'yes' if 'loss_soft' in outcome.teaches else ''
    at = {'positives': 'positives', 'gt': 'ground truth'}[outcome.instances]
    methods = f'{len(outcome.methods) - len(refused)} of {len(outcome.methods)}'
    space = '' if outcome.class_space else 'yes'
    return f'| {outcome.name} | {soft} | {at} | {space} | {methods} | {cell("; ".join(notes))} |'


def cell(text: str) -> str:
    """Text as it can stand in a Markdown table."""
    return ' '.join(text.split()).replace('|', r'\|')
