"""Resuming with other settings: what changed since the checkpoint, and what takes effect."""

from __future__ import annotations

from typing import Any, Optional

from mmcv import Config
from mmcv.runner import BaseRunner

from gkd.detectors.config_text import parsed
from gkd.watching import watched

NEW_OPTIMIZER = '--new-optimizer'
# The checkpoint has its own values; settings with these prefixes do not affect a resumed run.
FROM_CHECKPOINT = ('optimizer.', 'load_from', 'seed', 'model.student.checkpoint')
STARTING_WEIGHTS = ('init_cfg', 'pretrained')
# Entries with these prefixes are no settings of the training.
NO_SETTINGS = ('gpu_ids', 'work_dir', 'resume_from', 'auto_resume', 'dist_params', 'device',
               'custom_hooks_names')
MOST = 12  # settings that are listed
LONG = 60  # characters of a value


def log_changes(runner: BaseRunner, before: Optional[str], text: str,
                 new_optimizer: bool) -> None:
    """Log which settings differ from those of the checkpoint, and which of them take effect.

    Args:
        runner: The runner whose log is written.
        before: Text of the config in the checkpoint; None if it has none.
        text: Text of the config of this run.
        new_optimizer: Whether the settings of the optimiser are applied.
    """
    old, new = (flat(settings_in(source)) for source in (before, text))
    if old is None or new is None:
        return
    changed = [key for key in sorted({*old, *new})
               if old.get(key) != new.get(key) and not key.startswith(NO_SETTINGS)]
    without = [key for key in changed if is_from_checkpoint(key)
               and not (new_optimizer and key.startswith('optimizer.'))]
    with_effect = [key for key in changed if key not in without]
    lines = []
    for keys, what in ((with_effect, 'take effect'), (without, 'take no effect, the checkpoint '
                                                               'has its own')):
        if keys:
            lines.append(f'{len(keys)} settings differ from the checkpoint\'s and {what}:')
            lines += [f'  {key} = {short(new.get(key, GONE))} (was {short(old.get(key, GONE))})'
                      for key in keys[:MOST]]
            lines += [f'  and {len(keys) - MOST} more'] if len(keys) > MOST else []
    if any(key.startswith('optimizer.') for key in without):
        lines.append(f'The new settings of the optimiser are applied with {NEW_OPTIMIZER}.')
    if lines:
        runner.logger.warning('\n'.join(lines))


GONE = 'not set'


def is_from_checkpoint(key: str) -> bool:
    """Whether a setting only matters to a run that starts anew."""
    return key.startswith(FROM_CHECKPOINT) or (
        key.startswith('model.') and any(part in STARTING_WEIGHTS for part in key.split('.')))


def resume_without_optimizer(runner: BaseRunner, checkpoint: str, device: str) -> dict:
    """Resume all but the optimiser, which would break if it loaded the state of another type.

    Args:
        runner: The runner.
        checkpoint: The file.
        device: Where tensors go to.

    Returns:
        The state of the checkpoint's optimiser, empty if it holds none.
    """
    state: dict = {}
    with watched(runner.optimizer, 'load_state_dict', lambda load, given: state.update(given)):
        runner.resume(checkpoint, map_location=device)
    return state


def apply_optimizer(runner: BaseRunner, settings: list[dict]) -> None:
    """Give the optimiser new settings; its state, such as momentum, stays.

    Args:
        runner: A runner that was resumed.
        settings: Those of every group of parameters, as :func:`optimizer_settings` returns them.
    """
    for group, own in zip(runner.optimizer.param_groups, settings):
        for name in group.keys() - own.keys() - {'params'}:
            del group[name]
        group.update(own)
        group['initial_lr'] = own['lr']  # schedules start from it


def optimizer_settings(runner: BaseRunner) -> list[dict]:
    """Settings of every group of the optimiser's parameters."""
    return [{name: value for name, value in group.items() if name != 'params'}
            for group in runner.optimizer.param_groups]


def settings_in(text: Optional[str]) -> Optional[dict]:
    """The settings of a config's text; None without one, or if it holds anything else."""
    try:
        return parsed(text) if text else None
    except ValueError:
        return None


def flat(value: Any, key: str = '') -> Optional[dict[str, Any]]:
    """Settings by dotted name.

    Example:
        >>> flat(dict(a=dict(b=1, c=[dict(d=2), 3])))
        {'a.b': 1, 'a.c.0.d': 2, 'a.c.1': 3}
    """
    if value is None and not key:
        return None
    items = value.items() if isinstance(value, dict) else \
        enumerate(value) if isinstance(value, list) and any(
            isinstance(element, dict) for element in value) else None
    if not items:
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in items:
        found.update(flat(inner, f'{key}.{name}' if key else str(name)) or {})
    return found


def short(value: Any) -> str:
    """A value in few characters."""
    text = value if value is GONE else repr(value)
    return text if len(text) <= LONG else f'{text[:LONG]}...'


def has_other_optimizer(before: Optional[str], config: Config) -> bool:
    """Whether the checkpoint was written with an optimiser of another type."""
    kind = (settings_in(before) or {}).get('optimizer', {})
    return isinstance(kind, dict) and kind.get('type') not in (None, config.optimizer.get('type'))
