#!/usr/bin/env python
"""Measure where each loss of a distillation pulls the student: its gradient on every level's map.

Takes the first training steps of a distillation config, without a step of the optimiser, and
prints the Euclidean norm of every loss's gradient on the student's feature maps, and how far the
prototypes of a level tell classes apart.

    python studies/gradients.py CONFIG
"""

import argparse
import os.path as osp
import sys

import torch
from torch import Tensor

# The studies lie beside the package, in the clone only.
sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

from gkd.commands import positive, run
from gkd.frameworks import to_batch
from gkd.looking.agreement import coordinates
from gkd.looking.cli import add_pair_options, read_pair_options
from gkd.looking.trained import TrainedPair
from gkd.progress import silence
from gkd.running.data import build_checked_dataset
from gkd.running.train import training_loader


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n    ')[0])
    add_pair_options(parser, 'gradients')
    parser.add_argument('--steps', type=positive, default=8,
                        help='training steps whose median is printed (default: 8)')
    return parser.parse_args()


def gradient_norms(losses: dict, maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Norm of every loss's gradient on every map.

    Args:
        losses: Losses by name, scalars or lists of scalars.
        maps: The student's maps ``(B, C, H_l, W_l)``.

    Returns:
        Norms ``(L,)`` by name; 0 where a loss does not reach a map.
    """
    norms = {}
    for name, loss in losses.items():
        if 'loss' not in name:
            continue
        total = sum(loss) if isinstance(loss, (list, tuple)) else loss
        gradients = torch.autograd.grad(total, maps, retain_graph=True, allow_unused=True)
        norms[name] = torch.stack([torch.zeros(()) if gradient is None else gradient.norm().cpu()
                                   for gradient in gradients])
    return norms


def contrast(prototypes: Tensor, offsets: Tensor) -> tuple[float, float]:
    """Mean cosine of two prototypes of one class, and of two of different classes.

    Args:
        prototypes: Prototypes of a level, ``(P, D)``.
        offsets: Class c owns rows ``offsets[c]:offsets[c + 1]``.

    Example:
        >>> contrast(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2, 3]))
        (1.0, 0.0)
    """
    cosines = coordinates(prototypes, prototypes)
    classes = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    same = classes[:, None] == classes
    others = ~torch.eye(len(prototypes), dtype=torch.bool)
    return tuple(cosines[pairs & others].mean().item() for pairs in (same, ~same))


def main():
    args = parse_args()
    config, _, out = read_pair_options(args)
    with silence():
        trained = TrainedPair(config, args.checkpoint, args.device)
        distiller, bank = trained.distiller, trained.generate(out).bank
        loader = training_loader(config, build_checked_dataset(
            config.data.train, 'data.train'))
    distiller.bank = bank.to(trained.device)
    distiller.train()
    steps = []
    for data, _ in zip(loader, range(args.steps)):
        images, metas, boxes, labels = (
            data[name].data[0] for name in ('img', 'img_metas', 'gt_bboxes', 'gt_labels'))
        batch = to_batch(images.to(trained.device), metas,
                         *([value.to(trained.device) for value in values]
                           for values in (boxes, labels)))
        losses, step = distiller.observe(batch)
        for kind in distiller.knowledge:
            losses.update(kind(step))
        steps.append(gradient_norms(losses, step.student.maps))
    strides = trained.pair.strides
    print('| gradient of | ' + ' | '.join(f'stride {stride}' for stride in strides) + ' |')
    print('| --- |' + ' ---: |' * len(strides))
    for name in steps[0]:
        median = torch.stack([step[name] for step in steps]).median(dim=0).values
        print(f'| {name} | ' + ' | '.join(f'{norm:.5f}' for norm in median) + ' |')
    print('\n| cosine of two prototypes | ' + ' | '.join(f'stride {s}' for s in strides) + ' |')
    print('| --- |' + ' ---: |' * len(strides))
    for role in ('student', 'teacher'):
        pairs = [contrast(*level) for level in zip(getattr(bank, role), bank.offsets)]
        for index, which in enumerate(('one class', 'different classes')):
            print(f'| {role}, {which} | ' + ' | '.join(f'{pair[index]:.2f}' for pair in pairs)
                  + ' |')


if __name__ == '__main__':
    run(main)
