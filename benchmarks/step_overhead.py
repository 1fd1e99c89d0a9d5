"""Time and peak memory of a distillation step against what it cannot do without.

The lower bound is the student's own training step (forward and backward), the teacher's forward
(backbone, neck, and what scores classes: a one-stage teacher's head without the layers that only
regress boxes, a two-stage teacher's RoI head on the student's positives), and the adaptation
convolutions (forward and backward). The optimiser's step is in neither.
"""

from __future__ import annotations

import argparse
from typing import Optional

import inputs
import measure
import torch
from mmdet.core import bbox2roi
from mmdet.models import build_detector

from gkd.detectors.dense import without_regression
from gkd.detectors.step import recorded
from gkd.distiller import Distiller
from gkd.frameworks import synthetic_batch, to_batch
from gkd.planning.cost import random_bank

PROTOTYPES = 10


class Step:
    """A distiller with a batch, and the parts that its step cannot do without.

    Args:
        distiller: The distiller, in training mode, with a bank.
        data: A training batch on its device.
    """

    def __init__(self, distiller: Distiller, data: dict):
        self.distiller = distiller
        self.student, self.teacher = distiller.student, distiller.teacher
        self.adaptation = distiller.knowledge[0].local_knowledge.adaptation
        self.data = data
        torch.manual_seed(0)
        with torch.no_grad():
            _, step = distiller.observe(to_batch(**data))
        self.positives = len(step.labels)
        self.rois = bbox2roi(step.boxes)
        self.maps = [feature.detach().requires_grad_() for feature in step.student.maps]
        self.gradients = step.teacher.maps

    def whole(self) -> None:
        """The distillation step."""
        self.start()
        total(self.distiller.forward_train(**self.data)).backward()

    def student_alone(self) -> None:
        """The student's step without a teacher."""
        self.start()
        total(self.student.forward_train(**self.data)).backward()

    @torch.no_grad()
    def teacher_forward(self) -> tuple:
        """The teacher's maps and class scores."""
        maps = self.teacher.extract_feat(self.data['img'])
        if self.distiller.pair.teacher.is_two_stage:
            self.teacher.roi_head._bbox_forward(maps, self.rois)
        else:
            with without_regression(self.teacher.bbox_head):
                self.teacher.bbox_head(maps)
        return maps

    def adapt(self) -> None:
        """The adaptation convolutions alone, forward and backward."""
        self.start()
        self.backward_through_adaptation(self.maps, self.gradients)

    def lower_bound(self) -> None:
        """All parts in one step, for its memory: what the knowledge itself needs is missing."""
        self.start()
        with recorded(self.student, 'extract_feat') as features:
            loss = total(self.student.forward_train(**self.data))
        maps = self.teacher_forward()
        pair = self.distiller.pair
        self.backward_through_adaptation(
            [features[-1].result[level] for level in pair.levels(pair.student)],
            [maps[level] for level in pair.levels(pair.teacher)], loss)

    def backward_through_adaptation(self, maps, gradients, loss: Optional[torch.Tensor] = None):
        """Adapt maps and go back from them, with any gradient that has the right shape."""
        adapted = [layer(feature) for layer, feature in zip(self.adaptation, maps)]
        if loss is None:
            torch.autograd.backward(adapted, gradients)
        else:
            torch.autograd.backward([loss, *adapted], [None, *gradients])

    def start(self) -> None:
        """Same random choices and no old gradients at every start."""
        torch.manual_seed(0)
        self.distiller.zero_grad()
        for feature in self.maps:
            feature.grad = None


def total(losses: dict) -> torch.Tensor:
    """Sum all losses of a step."""
    return sum(sum(value) if isinstance(value, list) else value
               for name, value in losses.items() if 'loss' in name)


def build_distiller(model: dict) -> Distiller:
    """A distiller with random weights and random prototypes, on the device."""
    torch.manual_seed(0)
    distiller = build_detector(model)
    distiller.init_weights()
    distiller.bank = random_bank(distiller.pair, PROTOTYPES,
                                 distiller.frozen.class_channels).to(measure.device())
    return distiller.to(measure.device()).train()


def quickstart_step(family: str) -> Step:
    """The quickstart's step on its first training images."""
    config = inputs.quickstart_config(family)
    return Step(build_distiller(config.model), inputs.first_batch(config))


def coco_step(family: str) -> Step:
    """A step of ResNet-101 teaching ResNet-50 on COCO's 80 classes, on random images."""
    return Step(build_distiller(inputs.coco_model(family)), random_batch(family))


def random_batch(family: str, size: tuple[int, int] = (800, 1344), images: int = 2) -> dict:
    """A training batch of random images with boxes of COCO's 80 classes, on the device."""
    height, width = size
    # Anchors match many to a box; of the RPN, which is not trained here, few proposals match any.
    boxes = 8 if family == 'retinanet' else 64
    generator = torch.Generator().manual_seed(0)
    return measure.on_device(synthetic_batch(
        torch.randn(images, 3, height, width, generator=generator),
        [inputs.random_boxes(boxes, size, generator) for _ in range(images)],
        [torch.randint(80, (boxes,), generator=generator) for _ in range(images)]).native)


SETTINGS = dict(quickstart=quickstart_step, coco=coco_step)


def measure_step(setting: str, family: str, rounds: int) -> dict:
    """Time and memory of one setting, as a row of the table."""
    step = SETTINGS[setting](family)
    parts = dict(student=step.student_alone, teacher=step.teacher_forward, adaptation=step.adapt,
                 step=step.whole)
    seconds = measure.interleave(parts, rounds)
    bound = [sum(times) for times in
             zip(seconds['student'], seconds['teacher'], seconds['adaptation'])]
    ratios = [whole / least for whole, least in zip(seconds['step'], bound)]
    row = dict(setting=setting, family=family, images=len(step.data['img']),
               size=list(step.data['img'].shape[-2:]), positives=step.positives,
               ratio=measure.summary(ratios),
               seconds={name: measure.summary(times) for name, times in seconds.items()})
    del step
    row['memory'] = {part: int(measure.in_fresh_process(
        __file__, '--settings', setting, '--families', family, '--memory', part))
        for part in ('lower_bound', 'whole')}
    return row


def measure_memory(setting: str, family: str, part: str) -> int:
    """Peak memory in bytes of the step or its lower bound."""
    step = SETTINGS[setting](family)
    function = getattr(step, part)
    function()
    step.start()
    return measure.peak_memory(function)


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument('--families', nargs='+', choices=inputs.FAMILIES,
                        default=list(inputs.FAMILIES))
    parser.add_argument('--rounds', type=int, default=15, help='timings a part at quickstart size')
    parser.add_argument('--coco-rounds', type=int, default=3, help='timings a part at COCO size')
    measure.add_device_option(parser)
    parser.add_argument('--memory', choices=['whole', 'lower_bound'], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(measure_memory(args.settings[0], args.families[0], args.memory))
        return
    rounds = dict(quickstart=args.rounds, coco=args.coco_rounds)
    rows = [measure_step(setting, family, rounds[setting])
            for setting in args.settings for family in args.families]
    measure.report('step_overhead', rows, {
        'setting': lambda row: f'{row["setting"]}, {row["images"]} x '
                               f'{row["size"][0]} x {row["size"][1]}',
        'family': lambda row: row['family'],
        'positives': lambda row: str(row['positives']),
        'student s': lambda row: f'{row["seconds"]["student"]["median"]:.3f}',
        'teacher s': lambda row: f'{row["seconds"]["teacher"]["median"]:.3f}',
        'adaptation s': lambda row: f'{row["seconds"]["adaptation"]["median"]:.3f}',
        'step s': lambda row: f'{row["seconds"]["step"]["median"]:.3f}',
        'step / lower bound': lambda row: measure.show(row['ratio']),
        'peak memory MB': lambda row: f'{row["memory"]["whole"] / 1e6:.0f}',
        'memory / lower bound': lambda row: '{:.3f}'.format(
            row['memory']['whole'] / row['memory']['lower_bound']),
    }, 'Distillation step against its lower bound (median, quartiles)')


if __name__ == '__main__':
    main()
