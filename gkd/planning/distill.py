"""Check a distillation config that was made of a pair, and say what it will teach and cost."""

from __future__ import annotations

from typing import Union

from gkd.commands.distillation import as_lines, keep_config, teaching
from gkd.errors import ConfigError
from gkd.frameworks import Config
from gkd.planning.door import build_model, describe_images, schedule_of
from gkd.planning.plan import TrainingPlan, make_plan
from gkd.progress import without_details
from gkd.randomness import isolated_random_numbers


def prepare(config: Config, gpus: int = 1) -> tuple[str, list[str]]:
    """Check a distillation config, write it into its work dir, and print what it will do.

    Args:
        config: From ``distillation_config`` of the installed MMDetection.
        gpus: Processes that will train.

    Returns:
        Path of the written config, and lines for people.

    Raises:
        GKDError: The checkpoints do not fit, or the pair cannot be distilled.
    """
    with without_details():
        with isolated_random_numbers():
            model = build_model(config)
            model.init_weights()
        try:
            plan = make_plan(config, gpus)
        except ConfigError as error:  # it needs more than images with boxes, masks for instance
            plan = str(error)
    rows = [*teaching(model), ('images', describe_images(model, config)),
            ('schedule', schedule_of(config).describe(gpus)), ('costs', costs(plan))]
    path = keep_config(config)
    return path, as_lines(rows, path)


def costs(plan: Union[TrainingPlan, str]) -> str:
    """What a training costs, or why that is not known."""
    if isinstance(plan, str):
        return f'not known: {plan}'
    cost = plan.cost
    share = (cost.student + cost.teacher + cost.extra) / max(cost.student, 1)
    return (f'{share:.1f} times the operations of training the student alone; '
            f'{plan.memory / 2**30:.1f} GiB of each GPU, before what CUDA takes')
