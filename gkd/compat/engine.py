"""Patches of MMEngine, which MMDetection 3.x trains with."""

from __future__ import annotations

import functools
import importlib.util
import os
import os.path as osp
import sysconfig
from importlib import metadata

import mmcv
import mmengine.config.config
import mmengine.config.utils
import mmengine.device
import mmengine.hub.hub
import mmengine.utils.package_utils
from mmengine.dist import dist
from mmengine.dist import utils as dist_utils
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseTTAModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner, checkpoint

from gkd.compat.checkpoint import load_url
from gkd.compat.checkpoint_hook import refuse_unknown_settings
from gkd.compat.distributed import collect, init_over_gloo
from gkd.compat.local_files import load_from_local, put
from gkd.compat.weights import load_strictly
from gkd.errors import CheckpointError, ConfigError
from gkd.installed import numbers
from gkd.watching import watched


def accept_newer_mmcv() -> None:
    """Let mmdet be imported beside mmcv 2.2.

    Reason: mmdet 3.3 asserts a version below 2.2, which differs in four operators only. mmcv's
    version reads 2.1 while mmdet is imported, and the true version again afterwards.
    For: mmdet 3.x with mmcv 2.2.
    """
    version = mmcv.__version__
    if numbers(version) >= (2, 2):
        mmcv.__version__ = '2.1.0'
    try:
        import mmdet  # noqa: F401
    finally:
        mmcv.__version__ = version


def find_packages_without_setuptools() -> None:
    """Find the folder of a package, for ``_base_ = 'mmdet::...'``, by Python's own means.

    Reason: MMEngine asks ``pkg_resources``, which setuptools dropped in version 81.
    For: mmengine 0.x.
    """
    for module in (mmengine.utils.package_utils, mmengine.utils, mmengine.config.config,
                   mmengine.hub.hub):
        for function in (is_installed, get_installed_path):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)


def know_the_standard_library() -> None:
    """Let configs import modules of Python's standard library, as MMEngine documents it.

    Reason: MMEngine looks for them below the folder of a virtual environment, where they are not,
    and takes a config with ``import os.path`` for one in its new style, where it replaces imports.
    For: mmengine 0.10.
    """
    for module in (mmengine.config.utils, mmengine.config.config):
        module._is_builtin_module = is_of_python


def is_of_python(module: str) -> bool:
    """Whether a module, given by its dotted name, needs no package; MMEngine's parts count, too.

    Example:
        >>> [is_of_python(name) for name in ('os.path', 'math', 'sys', 'numpy', 'mmengine.config')]
        [True, True, True, False, True]
    """
    if module.startswith('mmengine.config'):
        return True
    top = module.partition('.')[0]
    spec = importlib.util.find_spec(top) if top else None
    origin = spec.origin if spec and spec.origin else ''
    folders = {sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib')}
    return origin in ('built-in', 'frozen') or (
        any(origin.startswith(folder + os.sep) for folder in folders)
        and not {'site-packages', 'dist-packages'} & {*origin.split(os.sep)})


def is_installed(package: str) -> bool:
    """Whether a package is installed, named as Python imports it or as pip knows it."""
    return _module_of(package) is not None


def get_installed_path(package: str) -> str:
    """The folder of an installed package.

    Args:
        package: As Python imports it or as pip knows it.

    Raises:
        ConfigError: It is not installed.
    """
    module = _module_of(package)
    if module is None:
        raise ConfigError(f'The package {package}, which a config names, is not installed.')
    return osp.abspath(importlib.util.find_spec(module).submodule_search_locations[0])


def _module_of(package: str) -> str | None:
    """The importable package of a distribution, None if there is none."""
    try:
        top = metadata.distribution(package).read_text('top_level.txt') or ''
    except metadata.PackageNotFoundError:
        top = ''
    for name in (package, *top.split()):
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is not None and spec.submodule_search_locations:
            return name
    return None


def read_checkpoints_safely() -> None:
    """Let MMEngine read checkpoints, its own ones included, without executing code in them.

    Reason: it calls ``torch.load`` with its default, which executes code before torch 2.6. Since
    then, MMEngine's own files are refused, because they hold its histories of logged numbers.
    For: mmengine 0.x, every torch.
    """
    checkpoint.CheckpointLoader.register_scheme('', load_from_local, force=True)
    checkpoint.load_url = load_url


def load_checkpoints_strictly() -> None:
    """Let ``load_from`` and ``resume`` stop when the checkpoint does not fit the model.

    Reason: MMEngine only logs what does not fit, and trains on from half-loaded weights.
    ``init_cfg`` of type 'Pretrained' keeps picking what it needs out of a classification network.
    For: mmengine 0.x.
    """
    load_as_asked = Runner.load_checkpoint

    @functools.wraps(load_as_asked)
    def load_checkpoint(self, filename, map_location='cpu', strict=True, *args, **kwargs):
        if not strict or args or kwargs:
            return load_as_asked(self, filename, map_location, strict, *args, **kwargs)
        loaded = checkpoint.CheckpointLoader.load_checkpoint(filename, map_location, self.logger)
        self.call_hook('after_load_checkpoint', checkpoint=loaded)
        model = self.model.module if isinstance(self.model, BaseTTAModel) else self.model
        load_strictly(model, loaded, filename)
        self._has_loaded = True
        self.logger.info(f'Loaded {filename}')
        return loaded

    Runner.load_checkpoint = load_checkpoint


def resume_without_running_the_config() -> None:
    """Resume without executing the config text in the checkpoint; name files that cannot resume.

    Reason: MMEngine runs ``meta['config']`` as Python to learn the number of GPUs, which its own
    configs do not hold; a checkpoint is data. A file of MMDetection 2, or with weights only, ends
    in a bare ``KeyError``.
    For: mmengine 0.x.
    """
    resume = Runner.resume

    @functools.wraps(resume)
    def resume_from(self, filename, *args, **kwargs):
        def load_without_config(load, *load_args, **load_kwargs):
            loaded = load(*load_args, **load_kwargs)
            if 'message_hub' not in loaded or 'epoch' not in loaded.get('meta', {}):
                raise CheckpointError(
                    f'{filename} cannot be resumed from: it holds weights only (exported or '
                    'published), or was written by MMDetection 2. Start from it with '
                    '`load_from` and without `resume`, or resume from the epoch_*.pth of the run.')
            loaded['meta'].pop('config', None)
            return loaded

        with watched(self, 'load_checkpoint', load_without_config):
            resume(self, filename, *args, **kwargs)

    Runner.resume = resume_from


def init_without_gpus() -> None:
    """Let ``init_dist`` and ``MMDistributedDataParallel`` work where there are no GPUs.

    Reason: both choose the GPU of the process's number whether there is one or not.
    For: mmengine 0.x.
    """
    init_over_gloo(dist_utils, unless=lambda: mmengine.device.get_device() != 'cpu')

    initialise = MMDistributedDataParallel.__init__

    @functools.wraps(initialise)
    def initialise_on_its_device(self, module, *args, **kwargs):
        if all(parameter.device.type == 'cpu' for parameter in module.parameters()):
            kwargs['device_ids'] = None
        initialise(self, module, *args, **kwargs)

    MMDistributedDataParallel.__init__ = initialise_on_its_device


def collect_results_without_files() -> None:
    """Let the first process get the results of an evaluation from the others themselves.

    Reason: as under mmdet 2.x (:func:`gkd.compat.distributed.collect_results_without_files`).
    For: mmengine 0.x.
    """
    dist.collect_results_cpu = collect


def refuse_mixed_precision_without_gpu() -> None:
    """Refuse ``AmpOptimWrapper`` where there is no GPU with a message instead of an assertion.

    For: mmengine 0.x.
    """
    initialise = AmpOptimWrapper.__init__

    @functools.wraps(initialise)
    def initialise_on_gpu(self, *args, **kwargs):
        if mmengine.device.get_device() in ('cpu', 'mps'):
            raise ConfigError('mixed precision (--amp, or `optim_wrapper.type = AmpOptimWrapper` '
                              'in the config) needs a GPU, and none is found. Take full '
                              'precision: leave out --amp, and give '
                              '--cfg-options optim_wrapper.type=OptimWrapper')
        initialise(self, *args, **kwargs)

    AmpOptimWrapper.__init__ = initialise_on_gpu


def refuse_unknown_settings_of_checkpoints() -> None:
    """Refuse unknown settings in ``default_hooks.checkpoint`` before the first step."""
    refuse_unknown_settings(CheckpointHook, [], 'default_hooks.checkpoint')


def write_files_whole() -> None:
    """Write checkpoints beside their place and move them there.

    Reason: a run that is killed while MMEngine writes leaves half a checkpoint under the final
    name.
    For: mmengine 0.x.
    """
    LocalBackend.put = put
