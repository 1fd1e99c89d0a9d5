"""Estimate parameters, FLOPs, memory and disk space of a training before it is run.

The training step is measured on small images of noise. Its operations and its memory consist of a
constant part (proposals, weights) and a part proportional to the number of pixels. So measurements
at two small sizes determine them for the training's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from torch import Tensor, nn

from gkd.frameworks import Config
from gkd.planning.cost import Cost, MeasuredStep
from gkd.planning.door import image_size, schedule_of
from gkd.planning.generation import FLOAT32, with_prefix
from gkd.planning.schedule import Schedule

# Width and height of the images that the step is measured on. All strides in use divide them.
PROBES = ((256, 256), (512, 256))
# Where images of one size only can be taken, as with SSD, the step is measured on so many of them.
FEW_IMAGES = (2, 4)


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will take.

    Attributes:
        gpus: Processes.
        schedule: How long, how many images per step, how fast, what is kept.
        width: Width of the largest images, in pixels.
        height: Likewise.
        cost: Cost of a step on one GPU.
        parameters: Parameters of student, teacher and distillation.
        trained: Parameters that the optimiser changes.
        optimizer_bytes: State of the optimiser.
        averaged_bytes: Weights that a hook averages; 0 without one.
        checkpoint_bytes: One checkpoint.
        generation_images: Images per pass of prototype generation; 0 without prototypes.
    """

    gpus: int
    schedule: Schedule
    width: int
    height: int
    cost: Cost
    parameters: dict[str, int]
    trained: int
    optimizer_bytes: int
    averaged_bytes: int
    checkpoint_bytes: int
    generation_images: int

    @property
    def memory_parts(self) -> dict[str, float]:
        """Bytes of a GPU at the peak of a step; the rest belongs to images."""
        weights = sum(self.parameters.values()) * FLOAT32
        # torch's DistributedDataParallel keeps gradients a second time, to send them.
        buckets = self.trained * FLOAT32 if self.gpus > 1 else 0
        return {'weights': weights, 'optimizer': self.optimizer_bytes,
                'features and gradients': self.cost.memory - weights - self.optimizer_bytes,
                'averaged weights': self.averaged_bytes, 'gradients to send': buckets}

    @property
    def memory(self) -> float:
        """Bytes of a GPU at the peak of the training: a step, or a generation of prototypes."""
        parts = self.memory_parts
        step = sum(parts.values())
        generation = (step - parts['features and gradients']
                      + self.generation_images * self.cost.generation)
        return max(step, generation)

    def lines(self) -> list[str]:
        """The plan in words."""
        images, rate = self.schedule.images, self.schedule.scaled_rate(self.gpus)
        base = self.schedule.learning_rate
        operations = ', '.join(f'{name} {with_prefix(getattr(self.cost, name))}FLOP'
                               for name in ('student', 'teacher', 'extra')
                               if getattr(self.cost, name))
        parts = ', '.join(f'{with_prefix(amount)}B of {name}'
                          for name, amount in self.memory_parts.items() if amount)
        parameters = ', '.join(f'{name} {with_prefix(number)}'
                               for name, number in self.parameters.items() if number)
        return [f'{name + ":":16}{text}' for name, text in (
            ('parameters', f'{parameters}; {with_prefix(self.trained)} are trained'),
            ('batch', f'{images} images of at most {self.width} x {self.height} on each of '
                      f'{self.gpus} GPUs, {images * self.gpus} a step'),
            ('learning rate', 'the optimizer\'s own' if rate is None else f'{rate:g}'
             + (f'; the {base:g} of the config is for {self.schedule.base_batch} images a step'
                if base != rate else ', as in the config')),
            ('a step', f'{operations} on each GPU'),
            ('memory', f'{with_prefix(self.memory)}B a GPU in single precision, without what '
                       f'CUDA, cuDNN and fragmentation take; in a step {parts}'),
            ('checkpoints', f'{self.schedule.checkpoints} of '
                            f'{with_prefix(self.checkpoint_bytes)}B each'))]


def make_plan(config: Config, gpus: int = 1, image: Optional[tuple[int, int]] = None,
              exact: bool = False, probes: Sequence[tuple[int, int]] = PROBES) -> TrainingPlan:
    """Plan a training.

    Args:
        config: A config of the installed MMDetection; neither data nor checkpoints are read.
        gpus: Processes it will run in.
        image: Width and height of the largest images; by default what the config scales to.
        exact: Run the step at full size instead of twice on smaller images, or on fewer.
        probes: Two smaller sizes; ignored where the images themselves are no larger.

    Raises:
        ConfigError: The model cannot be built, or its step cannot be run.
    """
    width, height = image or image_size(config)
    schedule = schedule_of(config)
    images = schedule.images
    step = MeasuredStep(config)
    cost = step.cost(width, height, images) if exact else \
        scaled_cost(step, width, height, images, probes)
    model = step.model
    parameters = dict(student=parameter_count(step.student))
    if step.distils:
        parameters.update(teacher=parameter_count(model.teacher),
                          extra=parameter_count(model.knowledge))
    optimizer_bytes = sum(map(tensor_bytes, step.optimizer_state))
    state = sum(map(tensor_bytes, model.state_dict().values()))
    averaged = state if averages_weights(config) else 0
    has_bank = step.distils and model.needs.bank
    return TrainingPlan(
        gpus=gpus, schedule=schedule, width=width, height=height, cost=cost, parameters=parameters,
        trained=sum(parameter.numel() for parameter in model.parameters()
                    if parameter.requires_grad),
        optimizer_bytes=optimizer_bytes, averaged_bytes=averaged,
        checkpoint_bytes=state + optimizer_bytes + averaged,
        generation_images=model.prototypes.batch_size if has_bank else 0)


def scaled_cost(step: MeasuredStep, width: int, height: int, images: int,
                probes: Sequence[tuple[int, int]] = PROBES) -> Cost:
    """The cost of a step, from two smaller ones if it is larger than these.

    They have smaller images, or fewer ones if a detector takes images of one size only.

    Args:
        step: The step.
        width: Width of the images, in pixels.
        height: Likewise.
        images: Their number.
        probes: Two smaller sizes.
    """
    if step.fixed_size is None:
        pixels = [w * h for w, h in probes]
        trials = [(*probe, images) for probe in probes]
        position = (width * height - pixels[0]) / (pixels[1] - pixels[0])
    else:
        trials = [(width, height, few) for few in FEW_IMAGES]
        position = (images - FEW_IMAGES[0]) / (FEW_IMAGES[1] - FEW_IMAGES[0])
    if position <= 1:
        return step.cost(width, height, images)
    first, second = (step.cost(*trial) for trial in trials)
    return first.towards(second, position)


def averages_weights(config: Config) -> bool:
    """Whether a hook of a config keeps averaged weights, and writes them into checkpoints."""
    return any(str(hook.get('type')).endswith('EMAHook')
               for hook in config.get('custom_hooks') or ())


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()
