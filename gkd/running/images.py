"""Compare the images that a config makes with those that its detectors were trained on."""

from __future__ import annotations

from typing import Optional

from mmcv import Config
from mmcv.utils import get_logger

from gkd.detectors.images import ChannelMap, ImageFormat, format_of
from gkd.distiller import Distiller
from gkd.errors import ConfigError


def adapt_images(model: Distiller, config: Config) -> None:
    """Let the teacher see images as in its own training; say so once, and what else differs.

    Args:
        model: The distiller; gets maps for images of the training and of the test pipeline, which
            prototypes come from.
        config: The config that it was built from, with its data.

    Raises:
        ConfigError: The images cannot be converted.
    """
    data = config.get('data') or {}
    training, testing = (format_of(data.get(part) or {}) for part in ('train', 'test'))
    logger = get_logger('mmdet')
    if differ(training, testing):
        logger.warning(f'data.train makes images of {training}, data.test of {testing}: a '
                       f'student that is trained on the ones will not know the others.')
    own = model.teacher_source.image_format()
    model.teacher_images = channel_map(training, own, 'data.train')
    for_prototypes = channel_map(testing, own, 'data.test')
    for detector in (model.frozen.exact, model.frozen.running):
        detector.test_images = for_prototypes
    if model.teacher_images is not None:
        logger.info(f'The teacher was trained on images of {own}, data.train makes {training}: '
                    f'they are converted for it.')
    student = model.student_source.image_format()
    if differ(student, training):
        logger.warning(
            f'The student\'s own config makes images of {student}, data.train of {training}: it '
            f'is trained on the latter. Test and use it with the pipelines of this config, or '
            f'give '
            f'data.train, data.val and data.test the img_norm_cfg of its own. If its own config '
            f'is not how it was trained before: model.student.img_norm_cfg = dict(mean=..., '
            f'std=..., to_rgb=...)')


def channel_map(given: Optional[ImageFormat], wanted: Optional[ImageFormat],
                key: str) -> Optional[ChannelMap]:
    """The map from images of a pipeline to those of the teacher; None if there is none to make."""
    if given is None or wanted is None:
        return None
    try:
        found = ChannelMap(given, wanted)
    except ConfigError as error:
        raise ConfigError(f'{key} makes images that cannot be converted for the teacher of '
                          f'model.teacher.config: {error}') from None
    return None if found.is_identity else found


def differ(first: Optional[ImageFormat], second: Optional[ImageFormat]) -> bool:
    """Whether two formats are known and differ in more than their padding."""
    if first is None or second is None:
        return False
    if first.colours != second.colours or len(first.mean) != len(second.mean):
        return True
    found = ChannelMap(first, second)
    return found.flip or not found.keeps_numbers
