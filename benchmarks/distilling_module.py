"""Time and peak memory of the robust distilling module by itself, forward and backward.

Maps, boxes, logits and prototypes are random; the detectors are not there. ``losses`` is global,
local and soft-label knowledge together on adapted maps that are given; ``convolutions`` is the
adaptation layers, which no form of local knowledge can do without. Maps have channels last, as
those of the quickstart and of a teacher in half precision; but for the student's on a GPU.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace

import inputs
import measure
import torch
from torch import nn

from gkd.detectors import DetectorInfo, DetectorOutputs, DetectorPair, Step
from gkd.knowledge import RobustDistillingModule
from gkd.prototypes import PrototypeBank

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 256
PROTOTYPES = 10


@dataclass
class Case:
    """What a step brings to the module.

    Attributes:
        images: Images a step.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        positives: Positive boxes per image.
        classes: Number of classes, each with 10 prototypes per level.
    """

    images: int = 2
    height: int = 800
    width: int = 1344
    positives: int = 64
    classes: int = 80


BASE = Case()
CASES = [
    BASE,
    *(replace(BASE, positives=positives) for positives in (16, 128, 256, 512)),
    *(replace(BASE, classes=classes) for classes in (1, 20, 365, 1203)),
    *(replace(BASE, height=height, width=width) for height, width in
      ((256, 256), (512, 512), (640, 1088), (1200, 2016))),
]


class Module:
    """The module with random inputs; a two-stage pair, which has one map more than a one-stage.

    Args:
        case: Sizes of the inputs.
        adapts: Whether the adaptation layers are there; else the student's maps pass unchanged.
    """

    def __init__(self, case: Case, adapts: bool):
        torch.manual_seed(0)
        info = DetectorInfo('random', 'two-stage', (CHANNELS,) * len(STRIDES), STRIDES,
                            case.classes, anchors=(), sigmoid=False, samples_positives=True,
                            classifies_boxes=True, box_coding=())
        self.module = RobustDistillingModule(DetectorPair(info, info, STRIDES))
        if not adapts:
            self.module.local_knowledge.adaptation = nn.ModuleList(nn.Identity() for _ in STRIDES)
        count = PROTOTYPES * case.classes
        self.module.to(measure.device())
        self.bank = PrototypeBank([torch.rand(count, CHANNELS) for _ in STRIDES],
                                  [torch.rand(count, CHANNELS) for _ in STRIDES],
                                  [torch.arange(0, count + 1, PROTOTYPES) for _ in STRIDES]
                                  ).to(measure.device())
        self.boxes = [inputs.random_boxes(case.positives, (case.height, case.width),
                                   torch.Generator().manual_seed(image))
                      for image in range(case.images)]
        self.labels = torch.randint(case.classes, (case.images * case.positives,))
        self.levels = torch.randint(4, self.labels.shape)
        self.boxes, self.labels, self.levels = measure.on_device(
            [self.boxes, self.labels, self.levels])
        size = (case.height, case.width)
        last = measure.device().type == 'cpu' or not adapts
        student = torch.channels_last if last else torch.contiguous_format
        self.step = Step(
            torch.zeros(case.images, 3, *size), [size] * case.images, STRIDES, self.boxes,
            list(self.labels.split(case.positives)), self.outputs(case, student),
            self.outputs(case, torch.channels_last), self.bank, boxes=self.boxes,
            labels=self.labels, roi_levels=self.levels)
        self.inputs = [*self.step.student.maps, self.step.student.logits]
        for tensor in self.inputs:
            tensor.requires_grad_()

    def outputs(self, case: Case, layout: torch.memory_format) -> DetectorOutputs:
        """Random outputs of a detector, its maps in the layout."""
        count = len(self.labels)
        return DetectorOutputs(**measure.on_device(dict(
            maps=tuple(torch.randn(case.images, CHANNELS, -(-case.height // stride),
                                   -(-case.width // stride)).to(memory_format=layout)
                       for stride in STRIDES),
            logits=torch.randn(count, case.classes + 1),
            roi_features=torch.randn(count, CHANNELS, 7, 7))))

    def run(self) -> None:
        """One forward and backward."""
        self.forget_gradients()
        sum(self.module(self.step).values()).backward()

    def convolutions(self) -> None:
        """The adaptation layers alone, forward and backward."""
        self.forget_gradients()
        adapted = [layer(feature) for layer, feature in
                   zip(self.module.local_knowledge.adaptation, self.step.student.maps)]
        torch.autograd.backward(adapted, self.step.teacher.maps)

    def forget_gradients(self) -> None:
        """Free the gradients of the last run."""
        for tensor in (*self.inputs, *self.module.parameters()):
            tensor.grad = None


def measure_case(case: Case, rounds: int) -> dict:
    """Time and memory of one case, as a row of the table."""
    whole, losses = Module(case, adapts=True), Module(case, adapts=False)
    seconds = measure.interleave(dict(losses=losses.run, convolutions=whole.convolutions,
                                      whole=whole.run), rounds)
    launched, busy = measure.kernels(whole.run)
    maps = sum(feature.nbytes for feature in whole.step.student.maps)
    del whole, losses
    memory = int(measure.in_fresh_process(__file__, '--memory', json.dumps(asdict(case))))
    return dict(asdict(case), maps=maps, memory=memory, kernels=launched, busy=busy,
                seconds={name: measure.summary(times) for name, times in seconds.items()})


def measure_memory(case: Case) -> int:
    """Peak memory in bytes of forward and backward of the losses, gradients of maps included."""
    module = Module(case, adapts=False)
    module.run()
    module.forget_gradients()
    return measure.peak_memory(module.run)


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=5, help='timings a case')
    parser.add_argument('--base-only', action='store_true', help='only the first case')
    measure.add_device_option(parser)
    parser.add_argument('--memory', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(measure_memory(Case(**json.loads(args.memory))))
        return
    rows = [measure_case(case, args.rounds) for case in (CASES[:1] if args.base_only else CASES)]
    measure.report('distilling_module', rows, {
        'size': lambda row: f'{row["images"]} x {row["height"]} x {row["width"]}',
        'positives per image': lambda row: str(row['positives']),
        'classes': lambda row: str(row['classes']),
        'losses s': lambda row: measure.show(row['seconds']['losses']),
        'convolutions s': lambda row: f'{row["seconds"]["convolutions"]["median"]:.3f}',
        'both s': lambda row: f'{row["seconds"]["whole"]["median"]:.3f}',
        'kernels of both': lambda row: str(row['kernels'] or '-'),
        'peak memory of the losses, MB': lambda row: f'{row["memory"] / 1e6:.0f}',
        'student\'s maps, MB': lambda row: f'{row["maps"] / 1e6:.0f}',
    }, 'Robust distilling module, forward and backward (median, quartiles)')


if __name__ == '__main__':
    main()
