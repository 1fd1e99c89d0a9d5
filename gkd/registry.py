"""The registry of everything that a student can be taught."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional


class Registry(Mapping):
    """Classes by the name that a config's ``type`` gives.

    It is used as MMDetection's are, and needs none.

    Args:
        name: What it holds, for messages.

    Example:
        >>> ANIMALS = Registry('animals')
        >>> @ANIMALS.register_module()
        ... class Cat:
        ...     def __init__(self, colour):
        ...         self.colour = colour
        >>> 'Cat' in ANIMALS
        True
        >>> ANIMALS.build(dict(type='Cat', colour='black')).colour
        'black'
    """

    def __init__(self, name: str):
        self.name = name
        self.module_dict: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        return self.module_dict[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.module_dict)

    def __len__(self) -> int:
        return len(self.module_dict)

    def register_module(self, name: Optional[str] = None, force: bool = False,
                        module: Optional[type] = None) -> Callable[[type], type]:
        """Register a class, as a decorator or, given ``module``, at once.

        Args:
            name: Its name; by default that of the class.
            force: Replace a class of the same name.
            module: The class.

        Raises:
            KeyError: The name is taken.
        """
        def register(cls: type) -> type:
            key = name or cls.__name__
            if key in self.module_dict and not force:
                raise KeyError(f'{key} is already registered in {self.name}')
            self.module_dict[key] = cls
            return cls

        return register if module is None else register(module)

    def build(self, config: Mapping[str, Any], default_args: Optional[Mapping] = None) -> Any:
        """Make an object from its config.

        Args:
            config: ``type``, a registered name or a class, and the arguments of the class.
            default_args: Further arguments; those of the config go before them.

        Raises:
            KeyError: The type is missing or not registered.
        """
        arguments = {**(default_args or {}), **config}
        if 'type' not in arguments:
            raise KeyError(f'a config of {self.name} needs `type`, but is {config}')
        kind = arguments.pop('type')
        cls = self.get(kind) if isinstance(kind, str) else kind
        if cls is None:
            raise KeyError(f'{kind} is not in the {self.name} registry')
        try:
            return cls(**arguments)
        except Exception as error:
            # A TypeError of a constructor does not name the class.
            raise type(error)(f'{cls.__name__}: {error}') from error


KNOWLEDGE = Registry('knowledge')
