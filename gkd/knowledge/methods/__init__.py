"""Other methods of distillation, one file each: importing this package registers all of them."""

import importlib
import pkgutil

for found in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{found.name}')
