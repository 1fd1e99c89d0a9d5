"""What was found of the zoo's detectors, and the page that tabulates it."""

from __future__ import annotations

import json
import os.path as osp
from dataclasses import asdict, dataclass, field
from typing import Optional

from gkd.files import write_atomically
from gkd.installed import installed_version
from studies.door import PAIRS, SELF_PAIRS

WORKS, REFUSED, ABSENT, FAULT = 'works', 'refused', 'absent', 'fault'
MMDETECTION = f'MMDetection {installed_version("mmdet")}'

INTRODUCTION = '''\
# Detectors

What `python tools/check_detectors.py` found for the detectors that MMDetection ships configs of,
each as its own teacher, then in pairs of different ones. It tries those of the MMDetection that is
installed and writes their tables into `work_dirs/check_detectors/mmdet2/detectors.md` or
`mmdet3/detectors.md`. The detectors are the same, by the names that each MMDetection gives to
their configs; the last ones of MMDetection 3 are kinds that 2 lacks. Each pair

- trains its student alone and taught, from the same random numbers: the student's own losses are
  the same to the last bit,
- takes two steps of the distilling module with its default settings, and one of each of the ten
  other methods,
- takes a step of the distilling module in the class space, gradients included,
- takes a step of the distilling module with the teacher in bfloat16, on the CPU,
- tests the student on an image.

Weights are untrained, images are noise of 256 pixels (or what the head is made for), backbones
have one block per stage and an eighth of the channels where possible, heads sample and keep at
most 64 boxes: this shows what runs, not what is gained. "At" says where the student is taught: at
the positives that it trains on, or at the ground truth; soft labels of rows with the latter are
taught at the cells that it trains as objects. Global and local knowledge are taught in every row
that has an entry there. "Class space" says whether `global_knowledge=dict(space='classes')` works:
not where the teacher's head has no layers that read classes from maps alone, or where teacher and
student neither both predict at every place nor both classify boxes. "bfloat16" says whether the
teacher computes in bfloat16; one that falls back to full precision does not. On a GPU, teachers
compute in half precision by default, for which the CPU lacks many operations.
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
        bfloat16: Message of the module with the teacher in bfloat16; empty likewise.
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
    bfloat16: str = 'not tried'
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
            '| config | soft labels | at | class space | bfloat16 | other methods | what is not, '
            'and why |',
            '| --- | --- | --- | --- | --- | --- | --- |', *map(row, chosen)]) + '\n')
    return '\n'.join(tables)


def row(outcome: Outcome) -> str:
    """A row of the table."""
    if outcome.verdict != WORKS:
        return f'| {outcome.name} | | | | | | **{outcome.verdict}**: {cell(outcome.message)} |'
    refused = {name for name, said in outcome.methods.items() if said}
    notes = [f'soft labels: {outcome.left_out.rstrip(".")}'] if outcome.left_out else []
    if refused:
        notes.append(f'refused: {", ".join(sorted(refused))}')
    if outcome.bfloat16:
        notes.append(f'bfloat16: {outcome.bfloat16.rstrip(".")}')
    soft = 'yes' if 'loss_soft' in outcome.teaches else ''
    at = {'positives': 'positives', 'gt': 'ground truth'}[outcome.instances]
    methods = f'{len(outcome.methods) - len(refused)} of {len(outcome.methods)}'
    space, low = ('' if said else 'yes' for said in (outcome.class_space, outcome.bfloat16))
    return (f'| {outcome.name} | {soft} | {at} | {space} | {low} | {methods} | '
            f'{cell("; ".join(notes))} |')


def cell(text: str) -> str:
    """Text as it can stand in a Markdown table."""
    return ' '.join(text.split()).replace('|', r'\|')
