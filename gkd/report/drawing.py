"""What all pictures share: matplotlib without a screen, crops, boxes, and files."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

import matplotlib
import numpy as np

from gkd.datasets.images import read_image
from gkd.files import written_whole

matplotlib.use('Agg')
from matplotlib import font_manager  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

__all__ = ['crop', 'pixels_of', 'plt', 'rectangle', 'save']

MARGIN = 0.25  # of the box's size, around a crop
# Fonts of systems and distributions for letters that matplotlib's own font does not have.
FONTS = (
    'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', 'Noto Sans SC', 'Noto Sans JP',
    'Noto Sans KR', 'Source Han Sans SC', 'Source Han Sans CN', 'WenQuanYi Micro Hei',
    'WenQuanYi Zen Hei', 'Droid Sans Fallback', 'IPAexGothic', 'IPAGothic', 'TakaoPGothic',
    'NanumGothic', 'Microsoft YaHei', 'SimHei', 'Yu Gothic', 'Meiryo', 'Malgun Gothic',
    'PingFang SC', 'PingFang HK', 'Hiragino Sans', 'Apple SD Gothic Neo', 'Arial Unicode MS',
    'Noto Sans Devanagari', 'Noto Sans Thai', 'Noto Sans Bengali', 'Noto Sans Tamil')


def use_fonts_for_all_letters() -> None:
    """Let matplotlib take a letter that its font lacks from another installed font, if any has it.

    Names of classes are written as the data have them, in any language.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = plt.rcParams['font.family']
    plt.rcParams['font.family'] = [*families, *(
        name for name in FONTS if name in installed and name not in families)]


use_fonts_for_all_letters()


def save(figure: plt.Figure, path: str, dpi: int = 110) -> None:
    """Write a figure, whole or not at all, and close it; the file's ending decides its format."""
    with written_whole(path) as file:
        figure.savefig(file, dpi=dpi, format=osp.splitext(path)[1][1:])
    plt.close(figure)


def pixels_of(figure: plt.Figure) -> np.ndarray:
    """A figure as an RGB image ``(height, width, 3)`` uint8; the figure is closed."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return pixels


def crop(path: str, box: Sequence[float]) -> np.ndarray:
    """The box ``x1, y1, x2, y2`` of an image file and a margin around it, as an RGB image."""
    x1, y1, x2, y2 = box
    margin_x, margin_y = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    image = read_image(path)
    height, width = image.shape[:2]
    left, right = max(0, int(x1 - margin_x)), min(width, int(x2 + margin_x) + 1)
    top, bottom = max(0, int(y1 - margin_y)), min(height, int(y2 + margin_y) + 1)
    return image[top:bottom, left:right]


def as_text(name: str) -> str:
    """A name as matplotlib writes it as it is: between dollar signs it would read a formula.

    Example:
        >>> as_text('$5')
        '\\\\$5'
    """
    return name.replace('$', r'\$')


def end_of(name: str, length: int) -> str:
    """The last characters of a name that is too long for its place in a picture.

    The end is kept, as names of files mostly differ there.

    Example:
        >>> end_of('val/camera_3/000017.jpg', 12)
        '…/000017.jpg'
    """
    return name if len(name) <= length else f'…{name[1 - length:]}'


def rectangle(box: Sequence[float], color, linewidth: float = 1.6, **style) -> Rectangle:
    """The outline of a box ``x1, y1, x2, y2``."""
    x1, y1, x2, y2 = map(float, box)
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color,
                     linewidth=linewidth, **style)
