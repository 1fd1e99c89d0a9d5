"""A benchmark whose degradations are known: handwritten digits on photographs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from gkd.datasets.once import build_once
from gkd.errors import DataError
from gkd.progress import progress

RECIPE = 2  # count up when the files below come out differently
IMAGES = dict(train=1600, val=200)
CLASSES = tuple('0123456789')

# Shares of the scans and of every photograph's width that train; the rest validates.
TRAIN_SCANS = 0.7
TRAIN_WIDTH = 0.6

SCENE = 256  # pixels, height and width
MIN_REGION = 128  # pixels of a photograph that fill a scene, at least
MIN_INK = 96  # of 255; fainter rows and columns around a scanned digit are cut off
DIGITS = (4, 8)  # pasted onto a scene
OPAQUE = 128  # opacity, of 255, from which a pixel counts as ink or as hidden
SIZES = (24, 96)  # pixels, height or width of a digit, whichever is longer; log-uniform
MIN_BLUR, MAX_BLUR = 0.3, 3.0  # standard deviation in pixels
BLUR_PER_SIZE = 1 / 12  # digits that are blurred more can hardly be read
CONTRAST = (50, 120)  # grey values between a digit and its background, beyond its deviation
MAX_OCCLUSION = 0.6  # of a digit's ink; digits that are hidden more do not count


@dataclass
class Digit:
    """A digit on a scene.

    Attributes:
        label: Its class, 0 to 9.
        scan: Its index among scikit-learn's scans.
        size: Height or width of its ink in pixels, whichever is longer, before it was occluded.
        blur: Standard deviation of the Gaussian that blurred it, in pixels.
        ink: Number of its pixels, whether hidden or not.
        visible: Bool (256, 256), its pixels that nothing hides.
    """
    label: int
    scan: int
    size: int
    blur: float
    ink: int
    visible: np.ndarray

    @property
    def occlusion(self) -> float:
        """Fraction of its ink that later pastes hide."""
        return 1 - self.visible.sum() / self.ink


@dataclass
class Scene:
    """An image, and the digits pasted onto it.

    Attributes:
        image: (256, 256, 3) uint8, blue first.
        digits: In the order of pasting.
    """
    image: np.ndarray
    digits: list[Digit] = field(default_factory=list)

    def paste(self, colours: np.ndarray, opacity: np.ndarray) -> None:
        """Paste something over the image; it hides digits that are there already.

        Args:
            colours: (256, 256, 3) what is pasted, 0 to 255.
            opacity: (256, 256) uint8, 255 where it hides what is below.
        """
        x, y, width, height = cv2.boundingRect(opacity)
        box = np.s_[y:y + height, x:x + width]
        weight = opacity[box][..., None].astype(np.int32)
        # integers: the same on every machine
        self.image[box] = (self.image[box] * (255 - weight) + colours[box] * weight + 127) // 255
        for digit in self.digits:
            digit.visible[box] &= opacity[box] < OPAQUE


def prepare_digit_scenes(root: str = 'data/digit_scenes', seed: int = 0) -> Path:
    """Make the digit-scenes detection data set, once, in COCO format.

    Handwritten digits (scikit-learn's 1797 scans of 8x8 pixels, from the UCI repository) are
    pasted onto regions of eleven photographs (those in scikit-learn and scikit-image): 1600
    training and 200 validation images of 256x256 pixels, 4 to 8 digits each, ten classes.
    ``train.json``, ``val.json`` and ``images/`` depend on ``seed`` alone.

    Digits differ in size, colour and contrast; half are blurred; patches of photographs and later
    digits occlude them. Every COCO annotation says how much:

    - ``size``: height or width of the digit in pixels, whichever is longer, 24 to 96;
    - ``blur``: standard deviation of the Gaussian that blurred it, in pixels, 0 to 3. A digit is
      blurred by no more than a twelfth of its size, else nobody could read it;
    - ``occlusion``: fraction of its ink that is hidden, 0 to 0.6. A digit that is hidden more
      is not annotated.

    A box holds what is visible, as COCO's do; of a blurred digit it is the box before blurring.
    Training and validation share neither a scan (one block of scans each, since neighbours may be
    by the same hand) nor a region of a photograph (left and right of a line).

    Args:
        root: Folder of the data set. A complete one is left as it is.
        seed: Seed of the scenes.

    Returns:
        The folder of the data set.

    Raises:
        DataError: scikit-learn or scikit-image is missing, or ``root`` holds something else.
    """
    recipe = dict(data_set='digit_scenes', recipe=RECIPE, images=IMAGES, seed=seed)
    return build_once(root, recipe, lambda folder: _build(folder, seed))


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits.

    Returns:
        Ink (1797, 8, 8) uint8 from 0 to 255, and classes (1797,) int64.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing(error) from error
    digits = load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def load_photographs() -> dict[str, np.ndarray]:
    """Photographs in the packages of scikit-learn and scikit-image; none is downloaded.

    Returns:
        By name (height, width, 3) uint8 in OpenCV's order of channels, blue first.
    """
    names = ('astronaut', 'brick', 'camera', 'chelsea', 'coffee', 'grass', 'gravel', 'rocket')
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image

        photographs = {name: getattr(data, name)() for name in names}
        # Its right twin shows the same scene.
        photographs['motorcycle'] = data.stereo_motorcycle()[0]
        for name in ('china', 'flower'):
            photographs[name] = load_sample_image(f'{name}.jpg')
    except ImportError as error:
        raise _missing(error) from error
    return {name: cv2.cvtColor(
        image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
        for name, image in photographs.items()}


def draw_digit(scan: np.ndarray, size: int) -> np.ndarray:
    """Draw a scan larger, with smooth and sharp edges.

    Args:
        scan: (8, 8) uint8 ink.
        size: Wanted height or width of the ink, whichever is longer, in pixels.

    Returns:
        Opacity (height, width) uint8 with a margin of one scanned pixel around the ink.

    Example:
        >>> scan = np.zeros((8, 8), np.uint8)
        >>> scan[:, 3] = 255
        >>> ink = draw_digit(scan, 40) >= OPAQUE
        >>> ink.shape, int(ink.any(axis=1).sum())
        ((50, 15), 40)
    """
    x, y, width, height = cv2.boundingRect((scan >= MIN_INK).astype(np.uint8))
    ink = np.pad(scan[y:y + height, x:x + width], 1)
    scale = size / (max(ink.shape) - 2)
    height, width = (round(side * scale) for side in ink.shape)
    ink = cv2.resize(ink, (width, height), interpolation=cv2.INTER_CUBIC)
    # Ink rises from none to full over one scanned pixel. Let it rise over one drawn pixel.
    return ((ink - 128.0) * scale + 128).clip(0, 255).astype(np.uint8)


def make_scene(generator: np.random.Generator, scans: np.ndarray, labels: np.ndarray,
               photographs: dict[str, np.ndarray]) -> tuple[Scene, dict]:
    """Make one image.

    Args:
        generator: Source of every choice.
        scans: (N, 8, 8) uint8 ink.
        labels: (N,) classes of the scans.
        photographs: The photographs' parts that may be shown, (height, width, 3) uint8.

    Returns:
        The scene; and the name of the background's ``photograph`` with the ``region`` of it (x, y,
        width, height in pixels).
    """
    image, source = _photograph(generator, photographs)
    scene = Scene(image)
    # Patches that hide nothing: a patch must not mean a digit.
    for _ in range(generator.integers(0, 4)):
        x, y = generator.integers(0, SCENE, 2).tolist()
        scene.paste(_photograph(generator, photographs)[0],
                    _patch(generator, x, y, log_uniform(generator, *SIZES)))

    occupied = np.zeros((SCENE, SCENE), bool)
    for _ in range(generator.integers(DIGITS[0], DIGITS[1] + 1)):
        index = generator.choice(np.flatnonzero(labels == generator.integers(0, len(CLASSES))))
        size = round(log_uniform(generator, *SIZES))
        drawn = draw_digit(scans[index], size)
        x, y = _place(generator, drawn.shape, occupied)
        box = np.s_[y:y + drawn.shape[0], x:x + drawn.shape[1]]
        occupied[box] = True
        opacity = np.zeros((SCENE, SCENE), np.uint8)
        opacity[box] = drawn
        ink = opacity >= OPAQUE
        blur = 0.0
        if generator.random() < 0.5:
            blur = round(generator.uniform(MIN_BLUR, min(MAX_BLUR, size * BLUR_PER_SIZE)), 2)
            opacity = cv2.GaussianBlur(opacity, (0, 0), blur)
        scene.paste(np.broadcast_to(_colour(generator, scene.image[box]), image.shape), opacity)
        scene.digits.append(
            Digit(int(labels[index]), int(index), size, blur, int(ink.sum()), ink))

        if generator.random() < 0.3:
            height, width = drawn.shape
            scene.paste(_photograph(generator, photographs)[0], _patch(
                generator, x + generator.uniform(0, width), y + generator.uniform(0, height),
                size * generator.uniform(0.3, 0.8)))
    return scene, source


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """A random number, as likely between 1 and 2 as between 2 and 4."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))


def _build(folder, seed):
    scans, labels = load_scans()
    photographs = load_photographs()
    border = round(TRAIN_SCANS * len(scans))
    blocks = dict(train=(0, border), val=(border, len(scans)))
    (folder / 'images').mkdir()
    bar = progress(None, 'digit scenes', sum(IMAGES.values()))
    for number, split in enumerate(IMAGES):
        start, stop = blocks[split]
        parts = {name: photograph[:, _strip(photograph, split)]
                 for name, photograph in photographs.items()}
        images, annotations = [], []
        for image_id in range(1, IMAGES[split] + 1):
            scene, source = make_scene(
                np.random.default_rng([seed, number, image_id]), scans[start:stop],
                labels[start:stop], parts)
            source['region'][0] += _strip(photographs[source['photograph']], split).start
            file_name = f'{split}_{image_id:04d}.png'
            # hardly compressed, for quick decoding while training
            cv2.imwrite(str(folder / 'images' / file_name), scene.image,
                        [cv2.IMWRITE_PNG_COMPRESSION, 1])
            images.append(
                dict(id=image_id, file_name=file_name, width=SCENE, height=SCENE, **source))
            for digit in scene.digits:
                if digit.occlusion > MAX_OCCLUSION:
                    continue
                x, y, width, height = cv2.boundingRect(digit.visible.astype(np.uint8))
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=image_id, category_id=digit.label + 1,
                    bbox=[x, y, width, height], area=width * height, iscrowd=0, size=digit.size,
                    blur=digit.blur, occlusion=round(digit.occlusion, 3),
                    scan=start + digit.scan))
            bar.update()
        bar.write(f'digit scenes: {split}.json with {len(images)} images, '
                  f'{len(annotations)} digits')
        (folder / f'{split}.json').write_text(json.dumps(dict(
            info=dict(description=f'Digit scenes, seed {seed}'),
            categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
            images=images, annotations=annotations)))
    bar.close()


def _strip(photograph, split):
    """The columns of a photograph that a split may show."""
    line = round(TRAIN_WIDTH * photograph.shape[1])
    return slice(0, line) if split == 'train' else slice(line, photograph.shape[1])


def _photograph(generator, photographs):
    """A random region of a random photograph, enlarged to a scene's size."""
    name = list(photographs)[generator.integers(len(photographs))]
    height, width = photographs[name].shape[:2]
    side = int(generator.integers(MIN_REGION, min(height, width, SCENE) + 1))
    x, y = (int(generator.integers(0, length - side + 1)) for length in (width, height))
    region = photographs[name][y:y + side, x:x + side]
    if generator.random() < 0.5:
        region = region[:, ::-1]
    image = cv2.resize(region, (SCENE, SCENE), interpolation=cv2.INTER_LINEAR_EXACT)
    return image, dict(photograph=name, region=[x, y, side, side])


def _patch(generator, x, y, side):
    """Opacity of an ellipse or a rectangle, turned by a random angle, with smooth edges."""
    opacity = np.zeros((SCENE, SCENE), np.uint8)
    axes = (side, side * generator.uniform(0.5, 1))
    shape = ((float(x), float(y)), axes, generator.uniform(0, 180))
    if generator.random() < 0.5:
        cv2.ellipse(opacity, shape, 255, cv2.FILLED, cv2.LINE_AA)
    else:
        corners = np.rint(cv2.boxPoints(shape)).astype(np.int32)
        cv2.fillConvexPoly(opacity, corners, 255, cv2.LINE_AA)
    return opacity


def _place(generator, shape, occupied):
    """Upper left corner of a digit: usually apart from others, sometimes on one of them."""
    wanted = 0.0 if generator.random() < 0.75 else generator.uniform(0.2, 0.5)
    height, width = shape
    corners = [(int(generator.integers(0, SCENE - width + 1)),
                int(generator.integers(0, SCENE - height + 1))) for _ in range(16)]
    overlaps = [occupied[y:y + height, x:x + width].mean() for x, y in corners]
    return corners[int(np.argmin(np.abs(np.array(overlaps) - wanted)))]


def _colour(generator, background):
    """A colour that stands out from a background, clearly or just so."""
    mean, deviation = background.mean((0, 1)), background.mean(2).std()
    contrast = generator.uniform(*CONTRAST) + deviation
    darker = mean.mean() > generator.uniform(64, 192)
    colour = mean + (-contrast if darker else contrast) + generator.uniform(-40, 40, 3)
    return np.rint(colour).clip(0, 255).astype(np.int32)


def _missing(error):
    return DataError(
        f'Digit scenes are made of the digits and photographs in scikit-learn and scikit-image '
        f'({error}). Install them: pip install -r requirements/benchmarks.txt')
