"""Where a teacher or student comes from: a config and a checkpoint."""

from __future__ import annotations

import copy
import os.path as osp
from dataclasses import dataclass
from typing import Optional, Union

from torch import nn

from gkd.argument_types import check_types
from gkd.checkpoints import check_file, how_to_get
from gkd.compat.checkpoint import load_checkpoint_file
from gkd.compat.weights import class_names, load_strictly
from gkd.detectors.config_files import find_file, read_config
from gkd.detectors.entries import nested
from gkd.detectors.images import ImageFormat, format_of
from gkd.detectors.replacement import replace_settings
from gkd.errors import CheckpointError, ConfigError, require_count, shorten
from gkd.finite.weights import not_finite
from gkd.frameworks import (
    BESIDE_MODEL,
    MMDET_SCOPE,
    Config,
    ConfigDict,
    logger,
    mmdet_configs,
)
from gkd.resume import start_of
from gkd.work_dir import named_folder, no_checkpoint

NOT_GIVEN = object()


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
        classes: Names of a teacher's classes, in their order, where its checkpoint does not hold
            them.
    """

    config: Union[str, dict]
    checkpoint: Optional[str]
    key: str
    overrides: dict
    precision: Optional[str] = None
    graphs: int = 0
    img_norm_cfg: Optional[dict] = None
    inherit: tuple[str, ...] = ()
    classes: Optional[tuple[str, ...]] = None

    @classmethod
    def parse(cls, value: dict, key: str, checkpoint_required: bool = False) -> DetectorSource:
        """Check what the config says.

        Args:
            value: ``dict(config=..., checkpoint=..., overrides=..., img_norm_cfg=...)``; a
                teacher's may hold ``precision``, ``graphs`` and ``classes``, a student's
                ``inherit``.
            key: Place in the distillation config, for messages.
            checkpoint_required: Whether leaving ``checkpoint`` out is an error. An explicit
                ``checkpoint=None`` asks for untrained weights and is let through.

        Raises:
            ConfigError: A key is missing or unknown, or a value is of another type.

        Example:
            >>> source = DetectorSource.parse(
            ...     dict(config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
            ...          overrides={'bbox_head.num_classes': 3}), 'model.student')
            >>> source.model_config().bbox_head.num_classes
            3
        """
        if not isinstance(value, dict):
            raise ConfigError(f'{key} = {value!r}: must be a dict with `config`.')
        value = dict(value)
        if 'config' not in value:
            raise ConfigError(f'{key} needs `config`: a config file, mmdet::FILE, or a model '
                              f'dict.')
        config = value.pop('config')
        checkpoint = value.pop('checkpoint', NOT_GIVEN)
        overrides = value.pop('overrides', None) or {}
        img_norm_cfg = value.pop('img_norm_cfg', None)
        teaches = key.endswith('teacher')
        precision = value.pop('precision', None) if teaches else None
        graphs = value.pop('graphs', 0) if teaches else 0
        classes = value.pop('classes', None) if teaches else None
        inherit = () if teaches else value.pop('inherit', None) or ()
        if value:
            raise ConfigError(f'{key} has unknown keys {sorted(value)}; it takes `config`, '
                              f'`checkpoint`, `overrides`, `img_norm_cfg` and '
                              + ('`precision`, `graphs`, `classes`.' if teaches else '`inherit`.'))
        if not is_names(inherit):
            raise ConfigError(f'{key}.inherit = {inherit!r}: must be a list of names, such as '
                              f'["neck", "bbox_head"].')
        if classes is not None and not is_names(classes):
            raise ConfigError(f'{key}.classes = {classes!r}: must be a list of names, in the '
                              f'order in which the teacher learned them.')
        if checkpoint is NOT_GIVEN:
            if checkpoint_required:
                raise ConfigError(f'{key} needs `checkpoint`: an untrained teacher teaches noise.')
            checkpoint = None
        check_types(cls, dict(config=config, checkpoint=checkpoint, overrides=overrides), key)
        require_count(graphs, f'{key}.graphs', least=0)
        return cls(config, checkpoint, key, overrides, precision, graphs, img_norm_cfg,
                   tuple(inherit), classes and tuple(classes))

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
        for name in BESIDE_MODEL:
            if name in config and name not in model:
                model[name] = config[name]
        if self.checkpoint is not None or self.key.endswith('teacher'):
            drop_pretrained(model)  # an untrained teacher has untrained weights
        return model

    def image_format(self) -> Optional[ImageFormat]:
        """How the detector wants its images; None if neither config nor settings say.

        Raises:
            ConfigError: ``img_norm_cfg`` cannot be understood.
        """
        found = None
        if isinstance(self.config, str):
            config = self.read_file()
            preprocessor = config.get('model', {}).get('data_preprocessor') or \
                config.get('data_preprocessor')
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
        """Read the config file, with errors for people.

        Raises:
            ConfigError: It does not exist, or cannot be read.
        """
        path = find_file(self.config)
        if path is None:
            raise ConfigError(f'{self.key}.config: no such file: {self.config}'
                              + (f' (looked in {mmdet_configs()})'
                                 if self.config.startswith(MMDET_SCOPE) else ''))
        return read_config(path, f'{self.key}.config: ')

    def own_start(self) -> Optional[str]:
        """The whole detector's checkpoint that the training of its config file begins with."""
        return start_of(self.read_file()) if isinstance(self.config, str) else None

    def load_checkpoint(self, model: nn.Module) -> None:
        """Fill ``model`` with the checkpoint's weights, all of them or none.

        Its attribute ``CLASSES`` becomes the names of the classes that the checkpoint was trained
        on, if it or the config holds them.

        Raises:
            CheckpointError: The file is missing, unreadable, not the published file of that name,
                does not fit the model, or holds weights that are not finite.
            ConfigError: It names other classes than the config.
        """
        if self.classes is not None:
            model.CLASSES = self.classes
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
        if names is None:
            return
        if self.classes not in (None, names):
            raise ConfigError(f'{self.key}.classes are {shorten(self.classes)}, and '
                              f'{self.checkpoint} was trained on {shorten(names)}: leave '
                              f'`classes` out.')
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


def is_names(value: object) -> bool:
    """Whether a setting is a list of names."""
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def sources_of(model: dict) -> list[DetectorSource]:
    """Teacher and student that a distiller's ``model`` config names; none of other models."""
    return [DetectorSource.parse(model[role], f'model.{role}') for role in ('teacher', 'student')
            if role in model]


def own_file(config: Config) -> Optional[str]:
    """The file that a distillation's student has for a config; for other configs their own.

    None if no file describes the student as it is.
    """
    if 'student' not in config.model:
        return config.filename
    return DetectorSource.parse(config.model.student, 'model.student').whole_config()


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
    """Check that the checkpoint that the whole model starts or resumes from exists.

    Args:
        config: A whole config.

    Raises:
        CheckpointError: ``load_from`` names a file that is not there.
    """
    weights = config.get('load_from')
    if weights and '://' not in weights and not osp.isfile(weights):
        raise CheckpointError(f'load_from: {no_checkpoint(weights)}')


def without_checkpoints(model: ConfigDict) -> ConfigDict:
    """A ``model`` config that is built without reading any checkpoint.

    Detectors that distil by themselves, such as LD, name one of a teacher of their own.

    Args:
        model: A distiller's or a detector's; left as it is.

    Raises:
        ConfigError: A detector's config cannot be read.
    """
    model = copy.deepcopy(model)
    for role in {'teacher', 'student'} & model.keys():
        model[role].checkpoint = None
        detector = DetectorSource.parse(model[role], f'model.{role}').model_config()
        if detector.get('teacher_ckpt') is not None:
            model[role].overrides = {**(model[role].get('overrides') or {}), 'teacher_ckpt': None}
    if model.get('teacher_ckpt') is not None:
        model.teacher_ckpt = None
    return model


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
