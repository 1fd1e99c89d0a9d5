"""Settings that several methods share: checked, and filled in where a config leaves them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from gkd.errors import ConfigError

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


def value_or(value: Optional[float], default: float) -> float:
    """A setting, or the method's own choice where a config leaves it out: where it is None.

    Example:
        >>> value_or(0.0, default=2.0), value_or(None, default=2.0)
        (0.0, 2.0)
    """
    return default if value is None else value


def require_positive(value: float, key: str) -> None:
    """Raise ConfigError unless a setting is above 0.

    Args:
        value: The setting.
        key: Its place in the config, for the message.

    Example:
        >>> require_positive(0, 'CWD.temperature')
        Traceback (most recent call last):
        gkd.errors.ConfigError: CWD.temperature = 0: must be positive.
    """
    if not value > 0:
        raise ConfigError(f'{key} = {value!r}: must be positive.')


def choose_instances(instances: str, pair: DetectorPair, method: str, advice: str) -> str:
    """Choose the boxes that a method teaches at.

    Args:
        instances: As a config names them: ``'positives'`` for those that the student's sampler
            chose, ``'gt'`` for the ground truth, ``'auto'`` for the positives where the student
            samples some.
        pair: Traits of teacher and student.
        method: The method's name, for messages.
        advice: What to do where the student samples no positives, likewise.

    Returns:
        ``'positives'`` or ``'gt'``.

    Raises:
        ConfigError: ``instances`` is unknown, or the student samples no positives.

    Example:
        >>> from types import SimpleNamespace
        >>> pair = SimpleNamespace(student=SimpleNamespace(samples_positives=False))
        >>> choose_instances('auto', pair, 'RKD', 'set instances="gt".')
        'gt'
    """
    if instances not in ('auto', 'positives', 'gt'):
        raise ConfigError(f'{method}.instances = {instances!r}: must be "auto", "positives" or '
                          f'"gt".')
    if instances == 'auto':
        return 'positives' if pair.student.samples_positives else 'gt'
    if instances == 'positives':
        pair.require_positives(method, advice)
    return instances
