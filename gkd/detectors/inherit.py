"""Parts of a student that start with the teacher's weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gkd.errors import ConfigError, PairError

KEY = 'model.student.inherit'


def check_inherited(student: nn.Module, teacher: nn.Module, parts: Sequence[str]) -> None:
    """Check that the student can take over parts from the teacher.

    Args:
        student: The student.
        teacher: The teacher.
        parts: Names of modules of both, with dots for those inside others.

    Raises:
        ConfigError: A part is missing.
        PairError: A tensor in it differs; the message names the tensor.

    Example:
        >>> student = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> teacher = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
        >>> check_inherited(student, teacher, ['1'])
        >>> check_inherited(student, teacher, ['0'])
        Traceback (most recent call last):
        gkd.errors.PairError: model.student.inherit: 0.weight has the shape (3, 4) in the teacher
        and (3, 2) in the student; inherit only parts in which both are alike.
    """
    for name in parts:
        modules = dict(teacher=part_of(teacher, name, 'teacher'),
                       student=part_of(student, name, 'student'))
        shapes = {role: {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
                  for role, module in modules.items()}
        advice = 'inherit only parts in which both are alike.'
        for key in [*shapes['teacher'], *shapes['student']]:
            for role, others in (('teacher', 'student'), ('student', 'teacher')):
                if key not in shapes[role]:
                    raise PairError(f'{KEY}: only the {others} has {name}.{key}; {advice}')
            if shapes['teacher'][key] != shapes['student'][key]:
                raise PairError(
                    f'{KEY}: {name}.{key} has the shape {shapes["teacher"][key]} in the teacher '
                    f'and {shapes["student"][key]} in the student; {advice}')


def inherit(student: nn.Module, teacher: nn.Module, parts: Sequence[str]) -> None:
    """Copy the teacher's weights and statistics of some parts into the student.

    Args:
        student: The student; its other parts stay as they are.
        teacher: The teacher.
        parts: Names that :func:`check_inherited` lets through.
    """
    for name in parts:
        part_of(student, name, 'student').load_state_dict(
            part_of(teacher, name, 'teacher').state_dict(), strict=True)


def part_of(detector: nn.Module, name: str, role: str) -> nn.Module:
    """A module of a detector by its name.

    Raises:
        ConfigError: There is none.
    """
    try:
        if not name:
            raise AttributeError('a part needs a name')
        return detector.get_submodule(name)
    except AttributeError:
        parts = ', '.join(part for part, _ in detector.named_children())
        raise ConfigError(f'{KEY}: {role} {type(detector).__name__} has no {name!r}; '
                          f'its parts are {parts}.') from None
