"""A benchmark with as many classes as COCO: printed characters on photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gkd.datasets.once import build_once
from gkd.datasets.scenes import OPAQUE, Symbols, build_scenes

RECIPE = 1  # count up when the files come out differently
IMAGES = dict(train=2400, val=400)
# None is like another when turned and stretched, or too narrow to be found by its box.
CLASSES = tuple('ABCDEFGHJKLMNOPQRSTUVWXYZ' '23456789' 'abdefghmnqrt'
                'ΓΔΘΛΞΠΣΦΨΩ' 'αβγδεζθλμξπσφψω' '&%#@$?€£¥§')
# Typefaces that matplotlib carries; one style of each family validates.
FACES = dict(
    train=('DejaVuSans', 'DejaVuSans-Oblique', 'DejaVuSans-BoldOblique', 'DejaVuSansMono',
           'DejaVuSansMono-Bold', 'DejaVuSansMono-BoldOblique', 'DejaVuSerif', 'DejaVuSerif-Bold',
           'DejaVuSerif-Italic', 'STIXGeneralBol', 'STIXGeneralItalic', 'STIXGeneralBolIta'),
    val=('DejaVuSans-Bold', 'DejaVuSansMono-Oblique', 'DejaVuSerif-BoldItalic', 'STIXGeneral'))
PRINTED = 128  # pixels, height of the type that characters are drawn from; above scenes' sizes
MAX_ANGLE = 15  # degrees
MAX_SHEAR = 0.2  # columns for each row
MAX_STRETCH = 1.25  # of width against height, and the other way round


def prepare_character_scenes(root: str = 'data/character_scenes', seed: int = 0) -> Path:
    """Make the character-scenes detection data set, once, in COCO format.

    Printed letters (Latin and Greek), digits and signs of 80 classes, in 16 typefaces, each
    turned, sheared and stretched at random, are pasted onto regions of photographs: 2400 training
    and 400 validation images of 256x256 pixels, 4 to 8 characters each. What an annotation says
    of a character and what the two splits do not share is described in
    :mod:`gkd.datasets.scenes`; ``example`` is 80 times the number of its typeface in ``FACES``,
    those that train first, plus its class. Training and validation share no typeface either.

    Args:
        root: Folder of the data set. A complete one is left as it is.
        seed: Seed of the scenes; all files depend on it and on how the installed Pillow draws
            characters.

    Returns:
        The folder of the data set.

    Raises:
        DataError: scikit-learn or scikit-image is missing, or ``root`` holds something else.
    """
    recipe = dict(data_set='character_scenes', recipe=RECIPE, images=IMAGES, seed=seed)
    return build_once(root, recipe,
                      lambda folder: build_scenes(folder, character_symbols(), IMAGES, seed))


def character_symbols() -> Symbols:
    """All characters in all typefaces as what is pasted onto scenes."""
    faces = [face for split in FACES.values() for face in split]
    printed = [print_character(character, face) for face in faces for character in CLASSES]
    count = len(CLASSES)
    border = len(FACES['train']) * count
    return Symbols(
        'character', CLASSES, np.arange(len(printed)) % count,
        lambda generator, index, size: distort(generator, printed[index], size),
        dict(train=np.arange(border), val=np.arange(border, len(printed))), 'example')


def print_character(character: str, face: str) -> np.ndarray:
    """Draw a character large.

    Args:
        character: A single character.
        face: Name of a typeface's file in matplotlib's data, without its ending.

    Returns:
        Opacity (height, width) uint8 of its ink, without a margin.

    Example:
        >>> thin, wide = (print_character(letter, 'DejaVuSans') for letter in 'LW')
        >>> thin.shape[0] == wide.shape[0], thin.shape[1] < wide.shape[1]
        (True, True)
    """
    path = Path(matplotlib.get_data_path(), 'fonts', 'ttf', f'{face}.ttf')
    # Basic layout: the same with and without the library that Pillow may use for others.
    font = ImageFont.truetype(str(path), PRINTED, layout_engine=ImageFont.Layout.BASIC)
    sheet = Image.new('L', (3 * PRINTED, 3 * PRINTED))
    ImageDraw.Draw(sheet).text((PRINTED, PRINTED), character, fill=255, font=font)
    return _crop(np.array(sheet))


def distort(generator: np.random.Generator, printed: np.ndarray, size: int) -> np.ndarray:
    """Turn, shear and stretch a character at random.

    Args:
        generator: Source of the choices.
        printed: (height, width) uint8 opacity of its ink.
        size: Wanted height or width of the ink, whichever is longer, in pixels.

    Returns:
        Opacity (height, width) uint8 of its ink, without a margin.
    """
    angle = np.deg2rad(generator.uniform(-MAX_ANGLE, MAX_ANGLE))
    shear = generator.uniform(-MAX_SHEAR, MAX_SHEAR)
    stretch = MAX_STRETCH ** generator.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch])
    height, width = printed.shape
    side = 2 * max(printed.shape)
    centred = side / 2 - linear @ np.array([width / 2, height / 2])
    drawn = _crop(cv2.warpAffine(printed, np.column_stack([linear, centred]), (side, side)))
    height, width = (max(1, round(length * size / max(drawn.shape))) for length in drawn.shape)
    return cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)


def _crop(opacity):
    """The part that holds the ink."""
    x, y, width, height = cv2.boundingRect((opacity >= OPAQUE).astype(np.uint8))
    return opacity[y:y + height, x:x + width]
