"""A distillation step on a GPU: time, launched kernels and memory against the student alone.

ResNet-101 teaches ResNet-50 on random images with COCO's 80 classes. A row is a family of
detectors, a number of images and a precision: float32 with torch's defaults, or autocast (float16
on a GPU, bfloat16 on a CPU). Every precision of the teacher is a distiller of its own; all of them
are timed in turns, between two events of the device. ``step`` is forward and
backward without the optimiser, with the teacher in half precision if nothing else is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Callable, Optional

import inputs
import measure
import step_overhead
import torch
from torch import Tensor

from gkd.detectors import Step
from gkd.distiller import Distiller
from gkd.frameworks import to_batch

NAMES = dict(retinanet='RetinaNet', faster_rcnn='Faster R-CNN')
SIZE, SMALL_SIZE = (800, 1344), (128, 192)
# The first one is the default on a GPU, and the teacher of the steps that name none.
TEACHERS = dict(half=dict(precision='half'), full=dict(precision='full'),
                bfloat16=dict(precision='bfloat16'))
AUTOCAST = dict(cuda=torch.float16, cpu=torch.bfloat16)
# A shape is recorded when it comes for the third time.
WARMUP = 3


class Work:
    """What is timed of a distiller on a batch.

    Args:
        distiller: In training mode, with a bank, on the batch's device.
        batch: A training batch.
        autocasts: Whether the forward pass runs under autocast.
    """

    def __init__(self, distiller: Distiller, batch: dict, autocasts: bool):
        self.distiller = distiller
        self.batch = batch
        self.autocasts = autocasts
        self.device = batch['img'].device.type

    def step(self) -> None:
        """The distillation step."""
        self.train(self.distiller)

    def student_alone(self) -> None:
        """The student's step without a teacher."""
        self.train(self.distiller.student)

    def train(self, detector: torch.nn.Module) -> None:
        """Forward and backward of a detector, with the same random choices every time."""
        torch.manual_seed(0)
        self.forget_gradients()
        with self.autocast():
            loss = step_overhead.total(detector.forward_train(**self.batch))
        loss.backward()

    @torch.no_grad()
    def teacher(self) -> None:
        """The teacher's part of the step."""
        with self.autocast():
            self.distiller.teacher_step(self.batch['img'], self.observed)

    def module(self) -> None:
        """The distilling module by itself, forward and backward to the student's outputs."""
        self.forget_gradients()
        for tensor in (*self.observed.student.maps, self.observed.student.logits):
            tensor.grad = None
        self.module_losses().backward()

    @torch.no_grad()
    def module_forward(self) -> None:
        """The distilling module's forward by itself."""
        self.module_losses()

    def module_losses(self) -> Tensor:
        """The sum of the distilling module's losses."""
        with self.autocast():
            return sum(self.distiller.knowledge[0](self.observed).values())

    @cached_property
    def observed(self) -> Step:
        """What the module sees of the step; gradients end at the student's outputs."""
        torch.manual_seed(0)
        with torch.no_grad(), self.autocast():
            step = self.distiller.observe(to_batch(**self.batch))[1]
        step.student.maps = tuple(feature.detach().requires_grad_()
                                  for feature in step.student.maps)
        step.student.logits = step.student.logits.detach().requires_grad_()
        return step

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        return torch.autocast(self.device, AUTOCAST[self.device], enabled=self.autocasts)

    def forget_gradients(self) -> None:
        """Free the gradients of the last run."""
        self.distiller.zero_grad(set_to_none=True)


def build(family: str, teacher: dict, args: argparse.Namespace) -> Distiller:
    """A distiller with random weights, on the device.

    Args:
        family: Of the detectors.
        teacher: Settings of ``model.teacher``.
        args: The command's options.
    """
    model = inputs.coco_model(family)
    model.teacher.update(teacher)
    if args.small:
        for role in ('teacher', 'student'):
            model[role].overrides.update({'backbone.depth': 18,
                                          'neck.in_channels': [64, 128, 256, 512]})
    return step_overhead.build_distiller(model)


def batch_of(family: str, images: int, args: argparse.Namespace) -> dict:
    """A training batch on the device."""
    return step_overhead.random_batch(family, SMALL_SIZE if args.small else SIZE, images)


def teachers(args: argparse.Namespace) -> dict[str, dict]:
    """Settings of the teachers that are measured, by name."""
    if not args.graphs:
        return TEACHERS
    return dict(TEACHERS, graphs=dict(precision='half', graphs=len(args.images)))


def columns_of(family: str, args: argparse.Namespace) -> Iterable[tuple[int, bool, dict]]:
    """Images, whether autocast is on, and a batch, for every row of a family."""
    for images in args.images:
        batch = batch_of(family, images, args)
        for autocasts in (False, True):
            yield images, autocasts, batch


def peak_memory(function: Callable[[], None]) -> int:
    """Bytes that are allocated on the GPU at the peak of a function, all that is there."""
    for _ in range(WARMUP):
        function()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def build_and_weigh(family: str, teacher: dict, args: argparse.Namespace
                    ) -> tuple[Distiller, dict[tuple[int, bool], dict[str, int]]]:
    """A distiller, and the peak memory of its step and of its student alone for every row.

    Weights and images count, those of what is not needed do not, nor what was on the GPU before.
    """
    if args.device == 'cpu':
        return build(family, teacher, args), {}
    before = torch.cuda.memory_allocated()
    distiller = build(family, teacher, args)
    student = sum(tensor.nbytes for tensor in distiller.student.state_dict().values())
    others = torch.cuda.memory_allocated() - student
    peaks = {}
    for images, autocasts, batch in columns_of(family, args):
        work = Work(distiller, batch, autocasts)
        # The student first: a recording of the teacher stays on the GPU.
        alone = peak_memory(work.student_alone) - others
        peaks.setdefault((images, autocasts), dict(
            student=alone, step=peak_memory(work.step) - before))
        work.forget_gradients()
    return distiller, peaks


def measure_row(works: dict[str, Work], rounds: int) -> dict:
    """Times and launches of one row.

    Args:
        works: The same work with different teachers, by the teacher's name.
        rounds: Timings a part.
    """
    first = next(iter(works.values()))
    parts = dict(student=first.student_alone, module=first.module,
                 module_forward=first.module_forward,
                 **{f'step_{name}': work.step for name, work in works.items()},
                 **{f'teacher_{name}': work.teacher for name, work in works.items()})
    seconds = measure.interleave(parts, rounds, WARMUP)
    ratios = {name: measure.summary([step / student for step, student in
                                     zip(seconds[f'step_{name}'], seconds['student'])])
              for name in works}
    count, busy = measure.kernels(first.module)
    for work in works.values():
        work.forget_gradients()
    return dict(seconds={name: measure.summary(times) for name, times in seconds.items()},
                ratios=ratios, kernels=count, busy=busy)


def measure_family(family: str, args: argparse.Namespace) -> list[dict]:
    """All rows of a family of detectors."""
    distillers, memory = {}, {}
    for name, settings in teachers(args).items():
        distillers[name], memory[name] = build_and_weigh(family, settings, args)
    rows = []
    for images, autocasts, batch in columns_of(family, args):
        works = {name: Work(distiller, batch, autocasts) for name, distiller in distillers.items()}
        precision = str(AUTOCAST[args.device] if autocasts else torch.float32)
        rows.append(dict(
            family=family, images=images, size=list(batch['img'].shape[-2:]),
            precision=precision.replace('torch.', ''), device=measure.device_name(),
            memory={name: peaks.get((images, autocasts)) for name, peaks in memory.items()},
            **measure_row(works, args.rounds)))
    return rows


def milliseconds(part: str) -> Callable[[dict], str]:
    """How a row shows the median of a part."""
    return lambda row: f'{row["seconds"][part]["median"] * 1e3:.1f}'


def ratio(teacher: str) -> Callable[[dict], str]:
    """How a row shows a step against the student alone."""
    return lambda row: f'{row["ratios"][teacher]["median"]:.2f}'


def megabytes(teacher: str, part: str) -> Callable[[dict], str]:
    """How a row shows a peak of memory."""
    return lambda row: shown(row['memory'][teacher] and row['memory'][teacher][part], 1e-6, 0)


def shown(value: Optional[float], factor: float = 1, digits: int = 1) -> str:
    """A number, or a dash for what only a GPU has."""
    return '-' if value is None else f'{value * factor:,.{digits}f}'


def table(names: list[str]) -> dict[str, Callable[[dict], str]]:
    """The columns of the table.

    Args:
        names: Of the teachers.
    """
    columns = {
        'detectors, images, precision':
            lambda row: f'{NAMES[row["family"]]}, {row["images"]}, {row["precision"]}',
        'student alone': milliseconds('student'),
        'step': milliseconds('step_half'),
        'step / student alone': ratio('half'),
        'module': milliseconds('module'),
        'module, forward': milliseconds('module_forward'),
        'busy': lambda row: shown(row['busy'], 1e3),
        'kernels': lambda row: shown(row['kernels'], digits=0),
        **{f'teacher, {name}': milliseconds(f'teacher_{name}') for name in names},
        'step, full teacher': milliseconds('step_full'),
        'peak, step': megabytes('half', 'step'),
        'peak, student alone': megabytes('half', 'student'),
    }
    if 'graphs' in names:
        columns.update({'step, graphs': milliseconds('step_graphs'),
                        'ratio, graphs': ratio('graphs'),
                        'peak, graphs': megabytes('graphs', 'step')})
    return columns


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    measure.add_device_option(parser)
    parser.add_argument('--families', nargs='+', choices=inputs.FAMILIES,
                        default=list(inputs.FAMILIES))
    parser.add_argument('--images', nargs='+', type=int, default=[2, 8], help='images per batch')
    parser.add_argument('--rounds', type=int, default=7, help='timings a part')
    parser.add_argument('--graphs', action='store_true',
                        help='also a teacher whose launches are recorded (`teacher.graphs`)')
    parser.add_argument('--small', action='store_true',
                        help='ResNet-18 on small images, to try the command')
    args = parser.parse_args()
    args.device = measure.device().type
    rows = [row for family in args.families for row in measure_family(family, args)]
    measure.report('gpu_step', rows, table(list(teachers(args))),
                   f'Distillation step on {measure.device_name()} (medians, ms and MB)')


if __name__ == '__main__':
    main()
