"""Tree crowns on two aerial photographs."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from gkd.datasets.once import build_once
from gkd.datasets.wheels import read_from_wheel
from gkd.errors import DataError

REQUIREMENT = 'deepforest==2.1.0'
SHA256 = '8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54'
SCENES = ('2019_YELL_2_528000_4978000_image_crop2', '2019_YELL_2_541000_4977000_image_crop')
RECIPE = 2  # count up when the files below come out differently

TREE_CROWNS = 'data/tree_crowns/'
# Ends of the strips that can validate in turn, as parts of a scene's width.
STRIPS = dict(right=(0.7, 1.0), middle=(0.35, 0.65), left=(0.0, 0.3))

TILE = 256  # pixels
TRAIN_STRIDE = 96  # pixels between training tiles, at most
MIN_VISIBLE = 0.4  # part of a tree's box that a training tile must show
MIN_SIZE = 6  # pixels that a clipped box keeps on both axes, at least


def prepare_tree_crowns(root: str = 'data/tree_crowns',
                        validation: tuple[float, float] = (0.7, 1.0)) -> Path:
    """Make the tree-crown detection data set, once, in COCO format.

    Two scenes of the NEON tree-crown benchmark (Weinstein et al., 2021) with 853 labelled trees,
    as the MIT-licensed PyPI package ``deepforest`` carries them, become tiles of 256x256 pixels:
    ``train.json``, ``val.json`` and ``images/``. One vertical strip of every scene validates,
    the rest trains, and no tile crosses the line between them.

    Boxes are clipped to the tile, and dropped where fewer than 6 pixels remain on an axis. A
    training tile also drops trees that it shows less than 40 % of; training tiles overlap, which
    makes up for random crops. Validation tiles lie side by side (evenly spread, so that the last
    one ends at the border), and every tree counts once, in the tile that shows most of it. Other
    tiles that show a part of it have its box as ``iscrowd``: finding it there is neither
    rewarded nor punished. The same goes for trees of which the strip holds less than 40 %.

    Args:
        root: Folder of the data set. A complete one is left as it is.
        validation: Left and right end of the validation strip as parts of a scene's width. Other
            strips (and another ``root``) make a cross-validation.

    Returns:
        The folder of the data set.

    Raises:
        DataError: The scenes cannot be downloaded, or ``root`` holds something else.
    """
    recipe = dict(data_set='tree_crowns', recipe=RECIPE, validation=list(validation))
    return build_once(root, recipe, lambda folder: _build(folder, validation))


def strip_folder(strip: str) -> str:
    """Folder of the tree crowns of which one of the :data:`STRIPS` validates.

    Example:
        >>> strip_folder('right'), strip_folder('left')
        ('data/tree_crowns/', 'data/tree_crowns_left/')
    """
    return TREE_CROWNS if strip == 'right' else f'{TREE_CROWNS[:-1]}_{strip}/'


def _build(folder: Path, validation: tuple[float, float]) -> None:
    """Write the data set into an empty folder."""
    inside = 'deepforest/data/'
    files = read_from_wheel(
        REQUIREMENT, SHA256,
        [inside + scene + suffix for scene in SCENES for suffix in ('.png', '.xml')])
    (folder / 'images').mkdir()
    train, val = [], []
    for scene in SCENES:
        pixels = np.frombuffer(files[inside + scene + '.png'], np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR)
        boxes = read_voc_boxes(files[inside + scene + '.xml'])
        width = image.shape[1]
        left, right = (round(end * width) for end in validation)
        if not 0 <= left <= right - TILE <= width - TILE:
            raise DataError(f'validation={validation} is no strip of at least {TILE} pixels '
                            f'inside {scene}, which is {width} pixels wide.')
        val += _cut(image, boxes, left, right, TILE, scene, folder / 'images', once=True)
        for start, stop in ((0, left), (right, width)):
            if stop - start >= TILE:
                train += _cut(image, boxes, start, stop, TRAIN_STRIDE, scene, folder / 'images',
                              once=False)
    for name, tiles in (('train', train), ('val', val)):
        coco = to_coco(tiles)
        counted = sum(not annotation['iscrowd'] for annotation in coco['annotations'])
        print(f'tree crowns: {name}.json with {len(tiles)} tiles, {counted} boxes', flush=True)
        (folder / f'{name}.json').write_text(json.dumps(coco))


def read_voc_boxes(xml: bytes) -> np.ndarray:
    """Boxes of a PASCAL VOC annotation, (N, 4) float32: x1, y1, x2, y2 in pixels from 0."""
    corners = ('xmin', 'ymin', 'xmax', 'ymax')
    boxes = [[float(box.findtext(corner)) for corner in corners]
             for box in ElementTree.fromstring(xml).iter('bndbox')]
    # VOC counts pixels from 1 and includes the last one.
    return np.array(boxes, np.float32).reshape(-1, 4) - np.array([1, 1, 0, 0], np.float32)


def tile_origins(start: int, stop: int, stride: int, tile: int = TILE) -> list[int]:
    """First pixels of the tiles that cover ``start..stop``, evenly spread.

    Args:
        start: First pixel to cover.
        stop: End of the last tile (exclusive).
        stride: Greatest distance between neighbouring tiles.
        tile: A tile's size in pixels.

    Returns:
        Origins in ascending order; the first is ``start``, the last ``stop - tile``.

    Example:
        >>> tile_origins(0, 690, 256)
        [0, 217, 434]
    """
    steps = -(-(stop - start - tile) // stride)
    return [round(origin) for origin in np.linspace(start, stop - tile, steps + 1)]


def place_boxes(boxes: np.ndarray, tiles: Sequence[tuple[int, int]],
                once: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Distribute a scene's boxes over tiles.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the scene.
        tiles: The tiles' upper left corners x, y.
        once: Whether a box counts only in the tile that shows most of it, and is marked to be
            ignored in others; else it counts in every tile that shows enough of it.

    Returns:
        For every tile the boxes (n, 4) in the tile's pixels, clipped, and bool (n,): ignored.
    """
    corners = np.array(tiles, np.float32)[:, None]  # (T, 1, 2)
    clipped = (boxes.reshape(1, -1, 2, 2) - corners[:, :, None]).clip(0, TILE)
    sizes = clipped[:, :, 1] - clipped[:, :, 0]  # (T, N, 2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    visible = sizes.prod(2) / areas  # (T, N)
    kept = (sizes >= MIN_SIZE).all(2)
    counts = kept & (visible >= MIN_VISIBLE)
    if once:
        counts &= visible.argmax(0) == np.arange(len(tiles))[:, None]
    else:
        kept = counts
    return [(clipped[t, kept[t]].reshape(-1, 4), ~counts[t, kept[t]]) for t in range(len(tiles))]


def to_coco(tiles: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> dict:
    """COCO annotations of tiles.

    Args:
        tiles: Per tile its file name, boxes (n, 4) x1, y1, x2, y2, and bool (n,): ignored.

    Returns:
        The content of a COCO annotation file with the single class ``tree``.
    """
    images, annotations = [], []
    for image_id, (file_name, boxes, ignored) in enumerate(tiles, 1):
        images.append(dict(id=image_id, file_name=file_name, width=TILE, height=TILE))
        for (x1, y1, x2, y2), crowd in zip(boxes.tolist(), ignored.tolist()):
            annotations.append(dict(
                id=len(annotations) + 1, image_id=image_id, category_id=1,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=int(crowd)))
    return dict(
        info=dict(description='Tree crowns of the NEON benchmark, tiled',
                  source=REQUIREMENT),
        licenses=[dict(id=1, name='MIT')],
        categories=[dict(id=1, name='tree')], images=images, annotations=annotations)


def _cut(image, boxes, left, right, stride, scene, folder, once):
    """Write the tiles of one vertical strip; returns what ``to_coco`` takes."""
    corners = [(x, y) for y in tile_origins(0, image.shape[0], stride)
               for x in tile_origins(left, right, stride)]
    tiles = []
    for (x, y), (placed, ignored) in zip(corners, place_boxes(boxes, corners, once)):
        file_name = f'{scene}_{x:04d}_{y:04d}.png'
        # not compressed: photographs hardly shrink, and decoding would cost training time
        cv2.imwrite(str(folder / file_name), image[y:y + TILE, x:x + TILE],
                    [cv2.IMWRITE_PNG_COMPRESSION, 0])
        tiles.append((file_name, placed, ignored))
    return tiles
