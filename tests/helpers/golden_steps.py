"""One training step of every method on detectors of both families, under either MMDetection.

``python golden_steps.py FILE`` takes weights and images from FILE and prints, as JSON, every loss
and the sums of the gradients, bit by bit.
"""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import gkd
from gkd.bank import PrototypeBank
from gkd.frameworks import build_detector, synthetic_batch

# Of the package of helpers, this file alone can be imported under MMDetection 3.
SPEC = importlib.util.spec_from_file_location(
    'small_detectors', Path(__file__).with_name('small_detectors.py'))
small = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(small)

BOXES = ((8, 8, 60, 60), (70, 64, 120, 122), (30, 20, 50, 41))
SIZE = 128


BANK = 'student', 'teacher', 'offsets', 'class_features'
METHODS = {
    'class-space': dict(type='RobustDistillingModule', global_knowledge=dict(space='classes')),
    **{method: dict(type=method) for method in sorted(gkd.KNOWLEDGE)
       if gkd.KNOWLEDGE[method].__module__.startswith('gkd.')}}


def cases():
    """Every method, for detectors of either family."""
    return [(family, method) for family in small.FAMILIES for method in METHODS]


def build(family, method):
    """A distiller with random weights and prototypes."""
    detector = small.FAMILIES[family]
    model = build_detector(copy.deepcopy(small.distiller(
        detector(24), detector(), knowledge=[METHODS[method]])))
    return model.train()


def tensors_of(model):
    """All weights of a distiller, the teacher's too."""
    return {**model.state_dict(), **{f'teacher.{name}': tensor for name, tensor in
                                     model.teacher.state_dict().items()}}


def write(path):
    """Write weights, prototypes and images for all cases."""
    torch.manual_seed(0)
    tensors = dict(images=torch.randn(2, 3, SIZE, SIZE))
    for family, method in cases():
        model = build(family, method)
        model.student.init_weights()
        model.teacher.init_weights()
        bank = small.random_bank(model.pair, class_channels=model.frozen.class_channels)
        for name, tensor in tensors_of(model).items():
            tensors[f'{family} {method} {name}'] = tensor.clone().contiguous()
        for name in BANK:
            for level, tensor in enumerate(getattr(bank, name)):
                tensors[f'{family} {method} bank.{name}.{level}'] = tensor.clone()
    save_file(tensors, path)


def run(path):
    """Losses and sums of the gradients by case, as hexadecimal numbers."""
    tensors = load_file(path)
    results = {}
    for family, method in cases():
        model = build(family, method)
        start = f'{family} {method} '
        own = {name[len(start):]: tensor for name, tensor in tensors.items()
               if name.startswith(start)}
        bank = {name: [own.pop(f'bank.{name}.{level}') for level in range(len(model.pair.strides))
                       if f'bank.{name}.{level}' in own] for name in BANK}
        model.teacher.load_state_dict({name[8:]: own.pop(name) for name in list(own)
                                       if name.startswith('teacher.')})
        model.frozen.apply(lambda tensor: tensor)  # its class layers are copies
        model.load_state_dict(own)
        model.bank, model.progress = PrototypeBank(**bank), 0.25
        batch = synthetic_batch(tensors['images'].clone(), torch.tensor(BOXES).float(),
                                torch.arange(len(BOXES)))
        torch.manual_seed(0)
        losses = {name: sum(value) if isinstance(value, list) else value
                  for name, value in model.losses(batch).items() if 'loss' in name}
        sum(losses.values()).backward()
        results[start.strip()] = {
            **{name: float(value.detach()).hex() for name, value in losses.items()},
            'gradient': float(sum(parameter.grad.double().abs().sum()
                                  for parameter in model.parameters()
                                  if parameter.grad is not None)).hex()}
    return results


if __name__ == '__main__':
    torch.set_num_threads(1)
    print(json.dumps(run(sys.argv[1])))
