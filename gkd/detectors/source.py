"""Where a teacher or student comes from: a config and a checkpoint."""

from __future__ import annotations

import functools
import importlib.util
import os.path as osp
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape as glob_escape
from glob import glob
from typing import Any, Optional, Union

from torch import nn

from gkd.checkpoints import REPOSITORY, check_file, how_to_get
from gkd.compat.checkpoint import class_names, load_checkpoint_file, load_strictly
from gkd.detectors.images import ImageFormat, format_of
from gkd.detectors.replacement import replace_settings
from gkd.errors import CheckpointError, ConfigError
from gkd.finite.weights import not_finite
from gkd.frameworks import Config, ConfigDict, logger, mmdet_configs
from gkd.installed import mmdet_major
from gkd.work_dir import named_folder, no_checkpoint

MMDET_SCOPE = 'mmdet::'
# Held while a config is read: mmcv changes sys.path for it, and Python 3.11 fails at times if two
# threads parse code into a tree.
reading = threading.RLock()
NOT_GIVEN = object()
# The last releases that go with mmcv 1.x.
FOR_MMCV_1 = {'mmcls': 'mmcls==0.25.0'}


@dataclass
class DetectorSource:
    """A detector's config and checkpoint, as a distillation config names them.

    Attributes:
        config: Path of a config file, ``mmdet::PATH`` for one that the installed MMDetection
            ships, or the detector's ``model`` dict itself. Relative paths start from the working
            directory or, if nothing is there, from the repository.
        checkpoint: Path of the weights, or None.
        key: Place in the distillation config, for messages.
        overrides: Settings merged into the detector's config, as ``--cfg-options`` would.
        precision: A teacher's precision; see :class:`~gkd.detectors.teacher.Teacher`.
        graphs: Likewise.
        img_norm_cfg: How the detector's images were normalised in its training, as MMDetection's
            ``Normalize`` takes it; by default it is read from the test pipeline of its config.
        inherit: Parts that a student takes over from the teacher; see
            :func:`gkd.detectors.inherit.inherit`.
    """

    config: Union[str, dict]
    checkpoint: Optional[str]
    key: str
    overrides: dict
    precision: Optional[str] = None
    graphs: int = 0
    img_norm_cfg: Optional[dict] = None
    inherit: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: dict, key: str, checkpoint_required: bool = False) -> DetectorSource:
        """Check what the config says.

        Args:
            value: ``dict(config=..., checkpoint=..., overrides=..., img_norm_cfg=...)``; a
                teacher's may hold ``precision``, a student's ``inherit``.
            key: Place in the distillation config, for messages.
            checkpoint_required: Whether leaving ``checkpoint`` out is an error. An explicit
                ``checkpoint=None`` asks for untrained weights and is let through.

        Raises:
            ConfigError: A key is missing or unknown.

        Example:
            >>> source = DetectorSource.parse(
            ...     dict(config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
            ...          overrides={'bbox_head.num_classes': 3}), 'model.student')
            >>> source.model_config().bbox_head.num_classes
            3
        """
        value = dict(value)
        if 'config' not in value:
            raise ConfigError(f'{key} needs `config`: a config file, mmdet::FILE, or a model '
                              f'dict.')
        config = value.pop('config')
        checkpoint = value.pop('checkpoint', NOT_GIVEN)
        overrides = value.pop('overrides', {})
        img_norm_cfg = value.pop('img_norm_cfg', None)
        teaches = key.endswith('teacher')
        precision = value.pop('precision', None) if teaches else None
        graphs = value.pop('graphs', 0) if teaches else 0
        inherit = () if teaches else value.pop('inherit', None) or ()
        if value:
            raise ConfigError(f'{key} has unknown keys {sorted(value)}; it takes `config`, '
                              f'`checkpoint`, `overrides`, `img_norm_cfg` and '
                              + ('`precision`, `graphs`.' if teaches else '`inherit`.'))
        if isinstance(inherit, str) or not all(isinstance(part, str) for part in inherit):
            raise ConfigError(f'{key}.inherit = {inherit!r}: must be a list of names, such as '
                              f'["neck", "bbox_head"].')
        if checkpoint is NOT_GIVEN:
            if checkpoint_required:
                raise ConfigError(f'{key} needs `checkpoint`: an untrained teacher teaches noise.')
            checkpoint = None
        return cls(config, checkpoint, key, overrides, precision, graphs, img_norm_cfg,
                   tuple(inherit))

    def whole_config(self) -> Optional[str]:
        """File that describes the detector as it is; None if there is none, or with overrides."""
        if isinstance(self.config, str) and not self.overrides:
            return find_file(self.config)
        return None

    def model_config(self) -> ConfigDict:
        """The detector's ``model`` config, ready for ``build_detector``.

        Raises:
            ConfigError: The file does not exist, cannot be read, or holds no detector.
        """
        if isinstance(self.config, str):
            config = self.read_file()
        else:
            config = Config(dict(model=self.config))
        replace_settings(config, {f'model.{name}': value
                                  for name, value in self.overrides.items()},
                         f'{self.key}.overrides')
        if 'model' not in config or 'type' not in config.model:
            raise ConfigError(f'{self.key}.config = {self.config!r} has no `model` with a `type`.')
        model = config.model
        # Configs older than MMDetection 2.4 keep these two beside the model.
        for name in ('train_cfg', 'test_cfg'):
            if name in config and name not in model:
                model[name] = config[name]
        if self.checkpoint is not None or self.key.endswith('teacher'):
            drop_pretrained(model)  # an untrained teacher has untrained weights
        return model

    def image_format(self) -> Optional[ImageFormat]:
        """How the detector wants its images; None if neither config nor settings tell.

        Raises:
            ConfigError: ``img_norm_cfg`` cannot be understood.
        """
        found = None
        if isinstance(self.config, str):
            config = self.read_file()
            preprocessor = config.get('model', {}).get('data_preprocessor')
            if preprocessor:
                found = ImageFormat.of_preprocessor(preprocessor)
            else:
                data = config.get('data') or {}
                found = format_of(data.get('test') or data.get('val') or {})
        if self.img_norm_cfg is None:
            return found
        found = found or ImageFormat()
        try:
            return ImageFormat(padding=found.padding, colours=found.colours).normalised(
                self.img_norm_cfg['mean'], self.img_norm_cfg['std'],
                self.img_norm_cfg.get('to_rgb', True), keep_padding=True)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f'{self.key}.img_norm_cfg = {self.img_norm_cfg}: must be dict(mean='
                              f'[...], std=[...], to_rgb=...) ({error}).') from None

    def read_file(self) -> Config:
        """Read the config file, with errors for people."""
        path = find_file(self.config)
        if path is None:
            raise ConfigError(f'{self.key}.config: no such file: {self.config}'
                              + (f' (looked in {mmdet_configs()})'
                                 if self.config.startswith(MMDET_SCOPE) else ''))
        return read_config(path, f'{self.key}.config: ')

    def load_checkpoint(self, model: nn.Module) -> None:
        """Fill ``model`` with the checkpoint's weights, all of them or none.

        Its attribute ``CLASSES`` becomes the names of the classes that the checkpoint was trained
        on, if it holds them.

        Raises:
            CheckpointError: The file is missing, unreadable, not the published file of that name,
                does not fit the model, or holds weights that are not finite.
        """
        if self.checkpoint is None:
            logger().warning(
                f'{self.key}.checkpoint is None: {type(model).__name__} has untrained weights.')
            return
        self.check_checkpoint()
        path = find_file(self.checkpoint)
        checkpoint = load_checkpoint_file(path)
        load_strictly(model, checkpoint, path)
        broken = not_finite(model)
        if broken:
            raise CheckpointError(
                f'{self.key}.checkpoint: {len(broken)} weights of {self.checkpoint} are NaN or '
                f'infinite, first {broken[0]}: its training has diverged. Take an earlier one.')
        names = class_names(checkpoint)
        if names is not None:
            model.CLASSES = names

    def check_checkpoint(self) -> None:
        """Check that the checkpoint, if one is named, is there and not damaged.

        Raises:
            CheckpointError: It is missing, or is not the published file of that name; the message
                says how to get it.
        """
        if self.checkpoint is None:
            return
        path = find_file(self.checkpoint)
        if path is None:
            missing = f'no such file: {self.checkpoint}. {how_to_get(self.checkpoint)}'
            raise CheckpointError(
                f'{self.key}.checkpoint: {named_folder(self.checkpoint) or missing}')
        check_file(path)


def sources_of(model: dict) -> list[DetectorSource]:
    """Teacher and student that a distiller's ``model`` config names; none of other models."""
    return [DetectorSource.parse(model[role], f'model.{role}') for role in ('teacher', 'student')
            if role in model]


def check_checkpoints(model: dict) -> None:
    """Check that the checkpoints to start from are there and whole, before anything is built.

    Args:
        model: A ``model`` config.

    Raises:
        CheckpointError: Some are missing or damaged; the message says which, and how to get them.
    """
    faults = []
    for source in sources_of(model):
        try:
            source.check_checkpoint()
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError('\n'.join(faults))


def check_start(config: dict) -> None:
    """Check that the checkpoint is there that the whole model starts or goes on from.

    Args:
        config: A whole config.

    Raises:
        CheckpointError: ``load_from`` names a file that is not there.
    """
    weights = config.get('load_from')
    if weights and '://' not in weights and not osp.isfile(weights):
        raise CheckpointError(f'load_from: {no_checkpoint(weights)}')


def read_config(path: str, where: str = '') -> Config:
    """Read a config file.

    Args:
        path: The file. It is Python and is run.
        where: What to begin messages with.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        with reading:
            return with_registered_names(Config.fromfile(path))
    except Exception as error:
        message = (f'{where}cannot read config {path}: {type(error).__name__}: '
                   f'{missing_package(path, error) or error}'
                   f'{moved_base(error)}{other_mmdetection(error)}')
        # mmcv deletes the temporary copy of the config while it is open. The frames of this error
        # hold that copy; freeing it would print another error in the terminal.
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            traceback.clear_frames(error.__traceback__)
        finally:
            sys.unraisablehook = hook
        raise ConfigError(message) from error


def with_registered_names(config: Config) -> Config:
    """A config, changed so that this package's classes stand there by their registered names.

    A config of MMEngine's new style holds the classes themselves, and what is written of it their
    places, such as ``gkd.distiller.Distiller``.
    """
    if replace_classes(config._cfg_dict) and 'custom_imports' not in config:
        config.custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
    return config


def replace_classes(entry: Any) -> bool:
    """Replace this package's classes in all ``type`` of a config; returns whether there were any.

    Example:
        >>> entry = dict(knowledge=[dict(type='gkd.knowledge.methods.pkd.PKD')])
        >>> replace_classes(entry), entry
        (True, {'knowledge': [{'type': 'PKD'}]})
    """
    if isinstance(entry, dict):
        inside = [replace_classes(value) for value in entry.values()]
        place = place_of(entry.get('type'))
        if place.startswith('gkd.'):
            entry['type'] = name_of(place)
            return True
        return any(inside)
    return isinstance(entry, (list, tuple)) and any([replace_classes(value) for value in entry])


def place_of(kind: Any) -> str:
    """Where a class is that a config names by its place or holds; empty for other values."""
    if isinstance(kind, type):
        return f'{kind.__module__}.{kind.__qualname__}'
    return kind if isinstance(kind, str) else ''


def name_of(kind: Any) -> str:
    """Name of a class that a config names, with or without its place, or holds.

    Example:
        >>> name_of('gkd.distiller.Distiller'), name_of(dict), name_of(None)
        ('Distiller', 'dict', '')
    """
    return place_of(kind).rpartition('.')[2]


def other_mmdetection(error: Exception) -> str:
    """What to do if only the other MMDetection can read a config.

    mmcv 1.x looks for an MMDetection 3 ``_base_`` as a file. MMEngine takes any config that
    imports a package for one in its new format, which has no ``_base_`` lists.
    """
    if mmdet_major() == 3 and isinstance(error, RuntimeError) and 'lazy_import' in str(error):
        return (' (a config for MMDetection 2 may import packages; MMDetection 3 is installed: '
                'take one from configs/mmdet3/, or bash tools/setup.sh --mmdet 2)')
    if not isinstance(error, FileNotFoundError) or MMDET_SCOPE not in str(error):
        return ''
    return (f' (`_base_` of `{MMDET_SCOPE}...` is for MMDetection 3, and MMDetection 2 is '
            f'installed: bash tools/setup.sh --mmdet 3)')


def missing_package(path: str, error: Exception) -> str:
    """What to install if a config's ``custom_imports`` are not there.

    mmcv says nothing, MMEngine lists where Python looked.
    """
    if not isinstance(error, ImportError):
        return ''
    with reading:
        config = Config.fromfile(path, import_custom_modules=False)
    modules = (config.get('custom_imports') or {}).get('imports') or []
    names = [modules] if isinstance(modules, str) else modules
    packages = dict.fromkeys(name.partition('.')[0] for name in names)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return ''
    wanted = [FOR_MMCV_1.get(name, name) for name in missing]
    return (f'Its `custom_imports` ({", ".join(names)}) need {", ".join(missing)}, which is not '
            f'installed: pip install {" ".join(wanted)}, or, if it is a module of yours, add its '
            f'folder to PYTHONPATH')


def moved_base(error: Exception) -> str:
    """What to write in ``_base_`` if a config was not found there because it has moved."""
    named = re.search(r'"(.+)"', str(error)) if isinstance(error, FileNotFoundError) else None
    moved = find_moved(osp.normpath(named[1])) if named else None
    return f'. It has moved: write {moved} in `_base_`.' if moved else ''


def find_file(path: str) -> Optional[str]:
    """Resolve ``mmdet::`` paths and paths relative to the repository; None if nothing is there.

    A config that has moved into a subfolder is read from there (:func:`find_moved`), and the log
    says so.
    """
    if path.startswith(MMDET_SCOPE):
        candidates = [osp.join(mmdet_configs(), path[len(MMDET_SCOPE):])]
    else:
        candidates = [path, osp.join(REPOSITORY, path)]
    found = next((candidate for candidate in candidates if osp.isfile(candidate)), None)
    if found is None:
        found = next(filter(None, map(find_moved, candidates)), None)
        if found is not None:
            log_moved(path, found)
    return found


def find_moved(path: str) -> Optional[str]:
    """Find a config that is not at ``path`` in one of the subfolders of its folder.

    So ``configs/coco/NAME.py`` finds ``configs/coco/gkd/NAME.py``.

    Returns:
        Its path; None if there is none, or if several files have its name.
    """
    folder, name = osp.split(path)
    if not name.endswith('.py'):
        return None
    found = glob(osp.join(glob_escape(folder), '*', glob_escape(name)))
    return found[0] if len(found) == 1 else None


@functools.cache  # configs are read several times; once is enough
def log_moved(path: str, found: str) -> None:
    """Log which file is read instead of the one that was named."""
    logger().warning(f'{path} has moved; reading {found}')


def drop_pretrained(config: Union[dict, list]) -> None:
    """Remove pretrained initialisations: the checkpoint replaces them.

    Such an initialisation may also need a network connection.

    Args:
        config: A model config, changed in place at every depth.

    Example:
        >>> config = dict(backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained')))
        >>> drop_pretrained(config)
        >>> config
        {'backbone': {'type': 'ResNet', 'init_cfg': None}}
    """
    for entry in nested(config):
        start = entry.get('init_cfg')
        # PVT's initialisation names no type.
        if isinstance(start, dict) and (start.get('type') == 'Pretrained'
                                        or 'checkpoint' in start):
            entry['init_cfg'] = None
        entry.pop('pretrained', None)


def nested(entry: Any) -> Iterator[ConfigDict]:
    """All dicts inside a config, at every depth."""
    if isinstance(entry, dict):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry:
        if isinstance(inner, (dict, list, tuple)):
            yield from nested(inner)
