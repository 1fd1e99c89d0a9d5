"""A patch of both runners' hook that writes checkpoints."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

from gkd.errors import ConfigError


def refuse_unknown_settings(hook: type, others: Sequence[str], key: str) -> None:
    """Refuse settings of the hook that nothing takes, when it is made.

    Reason: it keeps them for ``runner.save_checkpoint``, which fails at the end of an epoch.
    For: mmcv 1.x, mmengine 0.x.

    Args:
        hook: The class of the hook.
        others: Settings that it accepts in addition to its signature.
        key: Its place in a config, for messages.
    """
    initialise = hook.__init__
    named = [name for name, parameter in inspect.signature(initialise).parameters.items()
             if name != 'self' and parameter.kind is not parameter.VAR_KEYWORD]
    known = [*named, *others]

    @functools.wraps(initialise)
    def initialise_with_known(self, *args, **settings):
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ConfigError(f'{key} has unknown settings {", ".join(unknown)}; it takes '
                              f'{", ".join(known)}.')
        initialise(self, *args, **settings)

    hook.__init__ = initialise_with_known
