"""Open Images' data set of MMDetection 2: boxes are fractions of images whose sizes it lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import ExifTags, Image

from gkd.errors import DataError


def in_pixels(found: dict[str, np.ndarray], size: tuple[int, int]
              ) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of single objects.

    Args:
        found: What the data set tells of an image: ``bboxes`` ``(n, 4)``, fractions of its width
            and height; ``labels`` ``(n,)``; ``gt_is_group_ofs`` ``(n,)`` bool.
        size: Width and height of the image.

    Returns:
        The boxes ``(m, 4)`` in pixels and the labels ``(m,)``; those of groups are left out.
    """
    single = ~found['gt_is_group_ofs']
    return found['bboxes'][single] * np.array(size * 2, np.float32), found['labels'][single]


def named_image(info: dict[str, Any]) -> dict[str, Any]:
    """What holds an image's ``filename``: its entry, or a part of it in Open Images' challenge."""
    return info.get('img_info', info)


def size_of(path: str) -> tuple[int, int]:
    """Width and height of an image file, turned as its camera says; it is not decoded.

    Raises:
        DataError: It cannot be read; with its path.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except OSError as error:
        raise DataError(f'{path}: the size of this image is needed, since Open Images\' boxes '
                        f'are fractions of it: {error}') from None
