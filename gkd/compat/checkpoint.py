"""Read checkpoints without running code in them."""

from __future__ import annotations

import io
import os
import os.path as osp
import pickle
import re
import types
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Union

import numpy as np
import torch
from torch import nn

from gkd.errors import CheckpointError
from gkd.installed import mmdet_major
from gkd.work_dir import no_checkpoint

if mmdet_major() == 3:
    from mmengine.logging import HistoryBuffer
else:
    class HistoryBuffer:
        """Stands for what MMEngine keeps of a logged number, in checkpoints of MMDetection 3."""

try:
    from numpy._core import multiarray
except ImportError:  # numpy < 1.26
    from numpy.core import multiarray

MapLocation = Union[str, torch.device, Callable, None]

# What MMDetection's checkpoints hold besides tensors and plain Python: numpy numbers (a best
# score, a seed) and small arrays. Files name numpy's functions by their old or new module.
_DTYPE_CLASSES = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdSU'}
_HARMLESS = {
    **{f'numpy.{core}.multiarray.{function.__name__}': function
       for core in ('core', '_core')
       for function in (multiarray.scalar, multiarray._reconstruct)},
    'numpy.dtype': np.dtype,
    'numpy.ndarray': np.ndarray,
    **{f'{dtype.__module__}.{dtype.__qualname__}': dtype for dtype in _DTYPE_CLASSES},
}


def _statistic(owner: type, name: str) -> Union[Callable, None]:
    """The one use of ``getattr`` in MMEngine's checkpoints: how a buffer sums up its numbers."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(owner, name, None)


_HARMLESS.update({
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    **{f'{module}.getattr': _statistic for module in ('__builtin__', 'builtins')},
})
_FIRST_SAFE_TORCH = (2, 6)
_WEIGHTS_ONLY = ("  python -c \"import torch; c = torch.load('IN.pth', map_location='cpu', "
                 "weights_only=False); torch.save(dict(state_dict=c['state_dict']), 'OUT.pth')\"")
_trusted = False


def trust_checkpoints() -> None:
    """Let this process read checkpoints that need other types, by running what they say.

    For ``--trust-checkpoint``, which a user gives knowing where all files of a command come from.
    """
    global _trusted
    _trusted = True


def load_checkpoint_file(path: str, map_location: MapLocation = 'cpu',
                         trust: bool = False) -> dict:
    """Read a checkpoint without executing code that it may carry.

    A checkpoint is a pickle, and a pickle can run anything while it is read. Only tensors, plain
    Python values, numpy's numbers and arrays, and MMEngine's histories of logged numbers are let
    through; MMEngine need not be installed.

    Args:
        path: A file written by ``torch.save`` (mmcv's, MMDetection's model zoo's, torchvision's).
        map_location: Where the tensors go, as in :func:`torch.load`.
        trust: Read the file even if it needs other types, by running what it says. Only for files
            of which you know where they come from.

    Returns:
        What the file holds: in MMDetection's format ``state_dict``, ``meta`` and, when a training
        run wrote it, ``optimizer``.

    Raises:
        CheckpointError: There is no such file, or it is cut short, damaged, no checkpoint,
            needs types that could execute code, or, trusted, a package that is not installed.
    """
    path = osp.expanduser(str(path))
    check_is_file(path)
    _check_sums(path)
    try:
        checkpoint = _torch_load(path, map_location, trust)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_explain_unpickling(path, error)) from None
    except ModuleNotFoundError as error:
        package = error.name.split('.')[0]
        raise CheckpointError(
            f'{path} holds objects of the package {package}, which is not installed. Install it '
            f'(pip install {package}), or, where it is installed, make a file with weights only:\n'
            f'{_WEIGHTS_ONLY}') from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError,
            AttributeError, ImportError, AssertionError) as error:
        # A damaged pickle can fail in any of these ways.
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint ({_first_line(error)}). It is cut short, '
            'damaged, or something else than a file written by torch.save: compare its size '
            f'({osp.getsize(path)} bytes) and its hash with the source, and get it again.'
        ) from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{path} holds a {type(checkpoint).__name__}, not a checkpoint: expected a dict with '
            'a `state_dict`, or a state dict itself.')
    return checkpoint


def load_url(url: str, model_dir: Union[str, None] = None, map_location: MapLocation = None,
             **settings) -> dict:
    """Download a checkpoint, unless it is there already, and read it without executing code.

    Args:
        url: Where it is.
        model_dir: Where it goes; torch's cache by default.
        map_location: Where the tensors go, as in :func:`torch.load`.
        **settings: Further settings of ``torch.hub.load_state_dict_from_url``; they have no effect
            here.

    Raises:
        CheckpointError: It cannot be downloaded or read.
    """
    from gkd.progress import on_terminal

    folder = model_dir or osp.join(torch.hub.get_dir(), 'checkpoints')
    path = osp.join(folder, osp.basename(url.split('?')[0]))
    if not osp.exists(path):
        os.makedirs(folder, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, path, progress=on_terminal())
        except OSError as error:
            raise CheckpointError(
                f'Cannot download {url} ({error}). Without a network, get the file elsewhere '
                'and name its path in the config.') from error
    return load_checkpoint_file(path, map_location)


def check_is_file(path: str) -> None:
    """Check that a checkpoint is a file that is not empty.

    Raises:
        CheckpointError: It is missing, a folder, or empty.
    """
    if not osp.isfile(path):
        raise CheckpointError(no_checkpoint(path))
    if osp.getsize(path) == 0:
        raise CheckpointError(f'{path} is empty; get it again.')


def _check_sums(path: str) -> None:
    """Verify the checksum of every part of the file, which torch.save writes and no one reads.

    Files in the format before torch 1.6 have none.
    """
    try:
        if not zipfile.is_zipfile(path):  # it raises, too, for some damages before Python 3.11
            return
        with zipfile.ZipFile(path) as parts:
            broken = parts.testzip()
    except Exception as error:  # the tables themselves are damaged, which has many forms
        broken = _first_line(error)
    if broken is not None:
        raise CheckpointError(f'{path} is damaged: what it holds does not match its checksums '
                              f'({broken}). Get it again, or resume from another checkpoint.')


def _torch_load(path: str, map_location: MapLocation, trust: bool):
    try:
        return _torch_load_safely(path, map_location)
    except pickle.UnpicklingError:
        if trust or _trusted:
            return torch.load(path, map_location=map_location, weights_only=False)
        raise


def _torch_load_safely(path: str, map_location: MapLocation):
    if _torch_version() >= _FIRST_SAFE_TORCH:
        with torch.serialization.safe_globals(
                [(value, name) for name, value in _HARMLESS.items()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    return torch.load(path, map_location=map_location, weights_only=False,
                      pickle_module=_restricted_pickle())


def _torch_version() -> tuple:
    return tuple(int(part) for part in torch.__version__.split('.')[:2])


def _restricted_pickle() -> types.ModuleType:
    """A ``pickle`` that builds tensors and harmless types only.

    For torch 2.1 to 2.5: their ``weights_only`` takes no list of further types (2.1 to 2.3) and
    can be circumvented (CVE-2025-32434).
    """
    allowed = {
        **_HARMLESS,
        'collections.OrderedDict': OrderedDict,
        'collections.Counter': Counter,  # the milestones of a learning rate's schedule
        **{f'{module}.{kind.__name__}': kind for module in ('__builtin__', 'builtins')
           for kind in (set, complex, bytearray)},
        '_codecs.encode': _encode,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'torch._utils._rebuild_tensor': torch._utils._rebuild_tensor,
        'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
        'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
        'torch.nn.parameter.Parameter': nn.Parameter,
        **{f'torch.{name}': getattr(torch, name) for name in dir(torch)
           if isinstance(getattr(torch, name), torch.dtype)},
        **{f'{storage.__module__}.{storage.__qualname__}': storage
           for storage in torch._storage_classes},
    }

    class Unpickler(pickle.Unpickler):

        def find_class(self, module, name):
            full_name = f'{module}.{name}'
            if full_name not in allowed:
                raise pickle.UnpicklingError(f'GLOBAL {full_name} was not an allowed global')
            return allowed[full_name]

    def load(file, **kwargs):
        return Unpickler(file, **kwargs).load()

    restricted = types.ModuleType('restricted_pickle')
    restricted.Unpickler = Unpickler
    restricted.load = load
    restricted.loads = lambda data, **kwargs: load(io.BytesIO(data), **kwargs)
    restricted.UnpicklingError = pickle.UnpicklingError
    return restricted


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """``_codecs.encode`` for bytes in old pickle protocols, without other codecs."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'GLOBAL _codecs.encode({encoding!r})')
    return text.encode('latin1')


def _explain_unpickling(path: str, error: Exception) -> str:
    needed = re.search(r"(?:GLOBAL|but got <class) '?([\w.]+)", str(error))
    if needed is None:
        return (f'{path} is not a checkpoint written by torch.save ({_first_line(error)}). A web '
                'page or a pointer file saved in its place, or a damaged file? Get it again.')
    return (f'{path} needs {needed.group(1)}, which is neither a tensor nor a plain value: '
            'reading it could execute code, so it is refused. If you know where the file comes '
            'from, add --trust-checkpoint, or convert it once, where the packages are installed '
            f'that it was written with, to one with weights only:\n{_WEIGHTS_ONLY}')


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    # torch wraps the reason of a refused file in advice that would execute it.
    text = re.sub(r'(?s).*WeightsUnpickler error:\s*', '', text)
    return text.splitlines()[0].split('. ')[0][:200]
