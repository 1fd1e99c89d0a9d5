"""Estimate parameters, FLOPs, memory and disk space of a training before it is run.

The training step is measured on small images of noise. Its operations and its memory consist of a
constant part (proposals, weights) and a part proportional to the number of pixels. So measurements
at two small sizes determine them for the training's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Optional

from mmcv import Config
from torch import Tensor, nn

from gkd.errors import ConfigError
from gkd.experiments.cost import Cost, MeasuredStep
from gkd.experiments.generation_plan import FLOAT32, with_prefix

# Width and height of the images that the step is measured on. All strides in use divide them.
PROBES = ((256, 256), (512, 256))


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will take.

    Attributes:
        gpus: Processes.
        images: Images per GPU and step.
        width: Width of the largest images, in pixels.
        height: Likewise.
        cost: Cost of a step on one GPU.
        parameters: Parameters of student, teacher and distillation.
        trained: Parameters that the optimiser changes.
        optimizer_bytes: State of the optimiser.
        checkpoint_bytes: One checkpoint.
        checkpoints: Checkpoints that are kept.
        learning_rate: As the config has it and as it is scaled to the batch.
        generation_images: Images per pass of prototype generation; 0 without prototypes.
    """

    gpus: int
    images: int
    width: int
    height: int
    cost: Cost
    parameters: dict[str, int]
    trained: int
    optimizer_bytes: int
    checkpoint_bytes: int
    checkpoints: int
    learning_rate: tuple[float, float]
    generation_images: int

    @property
    def memory_parts(self) -> dict[str, float]:
        """Bytes of a GPU at the peak of a step; the rest belongs to images."""
        weights = sum(self.parameters.values()) * FLOAT32
        # torch's DistributedDataParallel keeps gradients a second time, to send them.
        buckets = self.trained * FLOAT32 if self.gpus > 1 else 0
        return {'weights': weights, 'optimizer': self.optimizer_bytes,
                'features and gradients': self.cost.memory - weights - self.optimizer_bytes,
                'gradients to send': buckets}

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
        batch = self.images * self.gpus
        base, scaled = self.learning_rate
        operations = ', '.join(f'{name} {with_prefix(getattr(self.cost, name))}FLOP'
                               for name in ('student', 'teacher', 'extra')
                               if getattr(self.cost, name))
        parts = ', '.join(f'{with_prefix(amount)}B of {name}'
                          for name, amount in self.memory_parts.items() if amount)
        parameters = ', '.join(f'{name} {with_prefix(number)}'
                               for name, number in self.parameters.items() if number)
        return [f'{name + ":":16}{text}' for name, text in (
            ('parameters', f'{parameters}; {with_prefix(self.trained)} are trained'),
            ('batch', f'{self.images} images of at most {self.width} x {self.height} on each of '
                      f'{self.gpus} GPUs, {batch} a step'),
            ('learning rate', f'{scaled:g}' + (f', scaled from {base:g}' if base != scaled
                                               else ', as in the config')),
            ('a step', f'{operations} on each GPU'),
            ('memory', f'{with_prefix(self.memory)}B a GPU in single precision, without what '
                       f'CUDA, cuDNN and fragmentation take; in a step {parts}'),
            ('checkpoints', f'{self.checkpoints} of {with_prefix(self.checkpoint_bytes)}B each'))]


def make_plan(config: Config, gpus: int = 1, image: Optional[tuple[int, int]] = None,
              exact: bool = False, probes: Sequence[tuple[int, int]] = PROBES) -> TrainingPlan:
    """Plan a training.

    Args:
        config: A config from :func:`gkd.running.load_config`; neither data nor checkpoints are
            read.
        gpus: Processes it will run in.
        image: Width and height of the largest images; by default what the config scales to.
        exact: Run the step at full size instead of twice on smaller images.
        probes: Two smaller sizes; ignored where the images themselves are no larger.

    Raises:
        ConfigError: The model cannot be built, or its step cannot be run.
    """
    width, height = image or image_size(config)
    images = config.data.get('train_dataloader', {}).get('samples_per_gpu') or \
        config.data.get('samples_per_gpu', 1)
    step = MeasuredStep(config)
    pixels = [w * h for w, h in probes]
    if not exact and width * height > max(pixels):
        first, second = (step.cost(*probe, images) for probe in probes)
        cost = first.towards(second, (width * height - pixels[0]) / (pixels[1] - pixels[0]))
    else:
        cost = step.cost(width, height, images)
    model = step.model
    parameters = dict(student=parameter_count(step.student))
    if step.distils:
        parameters.update(teacher=parameter_count(model.teacher),
                          extra=parameter_count(model.knowledge))
    optimizer_bytes = sum(map(tensor_bytes, step.optimizer_state))
    state = sum(map(tensor_bytes, model.state_dict().values()))
    has_bank = step.distils and model.needs.bank
    return TrainingPlan(
        gpus=gpus, images=images, width=width, height=height, cost=cost, parameters=parameters,
        trained=sum(parameter.numel() for parameter in model.parameters()
                    if parameter.requires_grad),
        optimizer_bytes=optimizer_bytes, checkpoint_bytes=state + optimizer_bytes,
        checkpoints=kept_checkpoints(config), learning_rate=learning_rates(config, images * gpus),
        generation_images=model.prototypes.batch_size if has_bank else 0)


def image_size(config: Config) -> tuple[int, int]:
    """Width and height of the largest images that a config scales to, padded.

    Raises:
        ConfigError: The config names no size to scale to.
    """
    entry = config.data.train
    while 'pipeline' not in entry:
        entry = entry['dataset'] if 'dataset' in entry else entry['datasets'][0]
    for pipeline in (entry.pipeline, config.data.test.pipeline):
        steps = [step for outer in pipeline for step in (outer, *outer.get('transforms', ()))]
        scales = [scale for step in steps if 'img_scale' in step
                  for scale in (step['img_scale'] if isinstance(step['img_scale'], list)
                                else [step['img_scale']])]
        if scales:
            divisor = max(step.get('size_divisor') or 1 for step in steps)
            longest, shortest = max(map(max, scales)), max(map(min, scales))
            return tuple(ceil(side / divisor) * divisor for side in (longest, shortest))
    raise ConfigError('neither data.train nor data.test has a pipeline with `img_scale`; give the '
                      'size of the images: --size WIDTH HEIGHT')


def learning_rates(config: Config, batch: int) -> tuple[float, float]:
    """The learning rate of the config, and the one that it is scaled to."""
    rate = config.optimizer.lr
    scaling = config.get('auto_scale_lr') or {}
    if not scaling.get('enable', False):
        return rate, rate
    return rate, rate * batch / scaling.base_batch_size


def kept_checkpoints(config: Config) -> int:
    """Checkpoints that lie in the work dir at the end."""
    settings = config.get('checkpoint_config') or {}
    length = config.runner.get('max_epochs') or config.runner.get('max_iters')
    written = ceil(length / settings.get('interval', 1)) if settings.get('interval', 1) > 0 else 0
    most = settings.get('max_keep_ckpts', -1)
    return min(written, most) if most > 0 else written


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()
