"""Peak memory of a distillation step against the student alone, by the bytes of its tensors.

ResNet-101 teaches ResNet-50 on random images with COCO's 80 classes, as in gpu_step.py. A step
runs on the CPU while the bytes of all tensors that exist are counted: also of weights, gradients
and images. A GPU holds the same tensors, and besides what its libraries work with. The teacher is
in bfloat16, which takes as many bytes as the half precision of a GPU; so is autocast. Most of what
a step takes more are the weights of the teacher and of the distilling module.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Callable

import gpu_step
import inputs
import measure
from torch import Tensor, nn

from gkd.planning.cost import TensorMemory


def peak(function: Callable[[], None], there: Iterable[Tensor]) -> int:
    """The most bytes of tensors that exist at a time while a function runs.

    Args:
        function: What runs.
        there: Tensors that exist before.
    """
    with TensorMemory() as memory:
        for tensor in there:
            memory.add(tensor)
        function()
    return memory.peak


def weight_bytes(part: nn.Module) -> int:
    """Bytes of the weights of a part."""
    return sum(tensor.nbytes for tensor in part.state_dict().values())


def measure_family(family: str, args: argparse.Namespace) -> list[dict]:
    """All rows of a family of detectors."""
    distiller = gpu_step.build(family, dict(precision='bfloat16'), args)
    student = [*distiller.student.state_dict().values()]
    weights = [*distiller.state_dict().values(), *distiller.teacher.state_dict().values()]
    rows = []
    for images, autocasts, batch in gpu_step.columns_of(family, args):
        work = gpu_step.Work(distiller, batch, autocasts)
        work.step()  # makes what is made once in a training
        work.forget_gradients()
        alone = peak(work.student_alone, [batch['img'], *student])
        work.forget_gradients()
        step = peak(work.step, [batch['img'], *weights])
        work.forget_gradients()
        rows.append(dict(family=family, images=images, size=list(batch['img'].shape[-2:]),
                         precision='bfloat16' if autocasts else 'float32',
                         student=alone, step=step, ratio=step / alone,
                         teacher=weight_bytes(distiller.teacher),
                         module=weight_bytes(distiller.knowledge)))
    return rows


COLUMNS = {
    'detectors, images, precision':
        lambda row: f'{gpu_step.NAMES[row["family"]]}, {row["images"]}, {row["precision"]}',
    'student alone, MB': lambda row: f'{row["student"] * 1e-6:,.0f}',
    'step, MB': lambda row: f'{row["step"] * 1e-6:,.0f}',
    'step / student alone': lambda row: f'{row["ratio"]:.3f}',
    'teacher\'s weights, MB': lambda row: f'{row["teacher"] * 1e-6:,.0f}',
    'module\'s weights, MB': lambda row: f'{row["module"] * 1e-6:,.0f}',
}


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--families', nargs='+', choices=inputs.FAMILIES,
                        default=list(inputs.FAMILIES))
    parser.add_argument('--images', nargs='+', type=int, default=[2], help='images per batch')
    parser.add_argument('--small', action='store_true',
                        help='ResNet-18 on small images, to try the command')
    args = parser.parse_args()
    rows = [row for family in args.families for row in measure_family(family, args)]
    measure.report('tensor_memory', rows, COLUMNS, 'Peak memory of a distillation step')


if __name__ == '__main__':
    main()
