"""What a comparison needs a training to leave: its last checkpoint, where it is looked for."""

from __future__ import annotations

from typing import Any, Optional

from gkd.errors import ConfigError

__all__ = ['check_last_checkpoint']


def check_last_checkpoint(settings: Optional[dict], key: str, needed: dict[str, Any]) -> None:
    """Raise ConfigError if a training would not leave its last checkpoint in its work dir.

    Args:
        settings: Of the hook that writes checkpoints; None if there is none.
        key: Where the config has them, after the config's name.
        needed: Values that the hook must have where it is given others, by the setting's name.

    Example:
        >>> needed = dict(save_last=True, out_dir=None)
        >>> check_last_checkpoint(dict(interval=3), 'a.py: checkpoint_config', needed)
        >>> check_last_checkpoint(dict(out_dir='/data'), 'a.py: checkpoint_config', needed)
        Traceback (most recent call last):
        ...
        gkd.errors.ConfigError: a.py: checkpoint_config.out_dir = '/data': a comparison needs ...
    """
    if settings is None:
        raise ConfigError(f'{key} = None: no checkpoint would be written, and a comparison needs '
                          f'the last one.')
    for name, value in needed.items():
        given = settings.get(name, value)
        if given != value:
            raise ConfigError(
                f'{key}.{name} = {given!r}: a comparison needs the last checkpoint under its own '
                f'name in the work dir. Set {name} to {value!r}.')
