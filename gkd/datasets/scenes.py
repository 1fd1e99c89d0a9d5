"""Scenes whose degradations are known: symbols on photographs.

Symbols, such as handwritten digits, are pasted onto regions of eleven photographs (those in
scikit-learn and scikit-image), 4 to 8 on an image of 256x256 pixels. They differ in size, colour
and contrast; half are blurred; patches of photographs and later symbols occlude them. Every COCO
annotation says how much:

- ``size``: height or width of the symbol in pixels, whichever is longer, 24 to 96;
- ``blur``: standard deviation of the Gaussian that blurred it, in pixels, 0 to 3. A symbol is
  blurred by no more than a twelfth of its size, else nobody could read it;
- ``occlusion``: fraction of its ink that is hidden, 0 to 0.6. A symbol that is hidden more
  is not annotated.

A box holds what is visible, as COCO's do; of a blurred symbol it is the box before blurring.
Training and validation share no region of a photograph (left and right of a line).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from gkd.errors import DataError
from gkd.progress import progress

TRAIN_WIDTH = 0.6  # share of every photograph's width that trains; the rest validates
SCENE = 256  # pixels, height and width
MIN_REGION = 128  # pixels of a photograph that fill a scene, at least
PASTED = (4, 8)  # symbols on a scene
OPAQUE = 128  # opacity, of 255, from which a pixel counts as ink or as hidden
SIZES = (24, 96)  # pixels, height or width of a symbol, whichever is longer; log-uniform
MIN_BLUR, MAX_BLUR = 0.3, 3.0  # standard deviation in pixels
BLUR_PER_SIZE = 1 / 12  # symbols that are blurred more can hardly be read
CONTRAST = (50, 120)  # grey values between a symbol and its background, beyond its deviation
MAX_OCCLUSION = 0.6  # of a symbol's ink; symbols that are hidden more do not count


@dataclass(frozen=True)
class Symbols:
    """What can be pasted onto scenes.

    Attributes:
        name: What one is called in messages, such as ``'digit'``.
        classes: Names of the classes.
        labels: (N,) class of every example.
        draw: Draws an example: from a random generator, its index and the wanted height or width
            of its ink in pixels, whichever is longer, comes its opacity (height, width) uint8.
        splits: Indices of the examples that each split may show, by the split's name.
        example: Key of the annotations for an example's index.
    """
    name: str
    classes: Sequence[str]
    labels: np.ndarray
    draw: Callable[[np.random.Generator, int, int], np.ndarray]
    splits: Mapping[str, np.ndarray]
    example: str


@dataclass
class Symbol:
    """A symbol on a scene.

    Attributes:
        label: Its class.
        example: Its index among the examples.
        size: Height or width of its ink in pixels, whichever is longer, before it was occluded.
        blur: Standard deviation of the Gaussian that blurred it, in pixels.
        ink: Number of its pixels, whether hidden or not.
        visible: Bool (256, 256), its pixels that nothing hides.
    """
    label: int
    example: int
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
    """An image, and the symbols pasted onto it.

    Attributes:
        image: (256, 256, 3) uint8, blue first.
        symbols: In the order of pasting.
    """
    image: np.ndarray
    symbols: list[Symbol] = field(default_factory=list)

    def paste(self, colours: np.ndarray, opacity: np.ndarray) -> None:
        """Paste something over the image; it hides symbols that are there already.

        Args:
            colours: (256, 256, 3) what is pasted, 0 to 255.
            opacity: (256, 256) uint8, 255 where it hides what is below.
        """
        x, y, width, height = cv2.boundingRect(opacity)
        box = np.s_[y:y + height, x:x + width]
        weight = opacity[box][..., None].astype(np.int32)
        # integers: the same on every machine
        self.image[box] = (self.image[box] * (255 - weight) + colours[box] * weight + 127) // 255
        for symbol in self.symbols:
            symbol.visible[box] &= opacity[box] < OPAQUE


def build_scenes(folder: Path, symbols: Symbols, images: Mapping[str, int], seed: int) -> None:
    """Write ``SPLIT.json`` for each split, and ``images/``, into a folder.

    Args:
        folder: An empty folder.
        symbols: What is pasted.
        images: Number of images by the name of the split, ``train`` and ``val``.
        seed: All files depend on it, the symbols and the photographs alone.

    Raises:
        DataError: scikit-learn or scikit-image is missing.
    """
    photographs = load_photographs()
    (folder / 'images').mkdir()
    bar = progress(None, f'{symbols.name} scenes', sum(images.values()))
    for number, split in enumerate(images):
        parts = {name: photograph[:, _strip(photograph, split)]
                 for name, photograph in photographs.items()}
        entries, annotations = [], []
        for image_id in range(1, images[split] + 1):
            scene, source = make_scene(
                np.random.default_rng([seed, number, image_id]), symbols, split, parts)
            source['region'][0] += _strip(photographs[source['photograph']], split).start
            file_name = f'{split}_{image_id:04d}.png'
            # hardly compressed, for quick decoding while training
            cv2.imwrite(str(folder / 'images' / file_name), scene.image,
                        [cv2.IMWRITE_PNG_COMPRESSION, 1])
            entries.append(
                dict(id=image_id, file_name=file_name, width=SCENE, height=SCENE, **source))
            for symbol in scene.symbols:
                if symbol.occlusion > MAX_OCCLUSION:
                    continue
                x, y, width, height = cv2.boundingRect(symbol.visible.astype(np.uint8))
                annotations.append({
                    'id': len(annotations) + 1, 'image_id': image_id,
                    'category_id': symbol.label + 1, 'bbox': [x, y, width, height],
                    'area': width * height, 'iscrowd': 0, 'size': symbol.size,
                    'blur': symbol.blur, 'occlusion': round(symbol.occlusion, 3),
                    symbols.example: symbol.example})
            bar.update()
        bar.write(f'{symbols.name} scenes: {split}.json with {len(entries)} images, '
                  f'{len(annotations)} {symbols.name}s')
        (folder / f'{split}.json').write_text(json.dumps(dict(
            info=dict(description=f'{symbols.name.capitalize()} scenes, seed {seed}'),
            categories=[dict(id=i, name=name) for i, name in enumerate(symbols.classes, 1)],
            images=entries, annotations=annotations)))
    bar.close()


def load_photographs() -> dict[str, np.ndarray]:
    """Photographs in the packages of scikit-learn and scikit-image; none is downloaded.

    Returns:
        By name (height, width, 3) uint8 in OpenCV's order of channels, blue first.

    Raises:
        DataError: scikit-learn or scikit-image is missing.
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
        raise missing(error) from error
    return {name: cv2.cvtColor(
        image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
        for name, image in photographs.items()}


def make_scene(generator: np.random.Generator, symbols: Symbols, split: str,
               photographs: Mapping[str, np.ndarray]) -> tuple[Scene, dict]:
    """Make one image.

    Args:
        generator: Source of every choice.
        symbols: What is pasted.
        split: Examples of this split are pasted.
        photographs: The photographs' parts that may be shown, (height, width, 3) uint8.

    Returns:
        The scene; and the name of the background's ``photograph`` with the ``region`` of it (x, y,
        width, height in pixels).
    """
    image, source = _photograph(generator, photographs)
    scene = Scene(image)
    # Patches that hide nothing: a patch must not mean a symbol.
    for _ in range(generator.integers(0, 4)):
        x, y = generator.integers(0, SCENE, 2).tolist()
        scene.paste(_photograph(generator, photographs)[0],
                    _patch(generator, x, y, log_uniform(generator, *SIZES)))

    examples = symbols.splits[split]
    labels = symbols.labels[examples]
    occupied = np.zeros((SCENE, SCENE), bool)
    for _ in range(generator.integers(PASTED[0], PASTED[1] + 1)):
        label = generator.integers(0, len(symbols.classes))
        index = int(generator.choice(examples[labels == label]))
        size = round(log_uniform(generator, *SIZES))
        drawn = symbols.draw(generator, index, size)
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
        scene.symbols.append(Symbol(int(label), index, size, blur, int(ink.sum()), ink))

        if generator.random() < 0.3:
            height, width = drawn.shape
            scene.paste(_photograph(generator, photographs)[0], _patch(
                generator, x + generator.uniform(0, width), y + generator.uniform(0, height),
                size * generator.uniform(0.3, 0.8)))
    return scene, source


def log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """A random number, as likely between 1 and 2 as between 2 and 4."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))


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
    """Upper left corner of a symbol: usually apart from others, sometimes on one of them."""
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


def missing(error: ImportError) -> DataError:
    """The error that says how to install what scenes are made of."""
    return DataError(
        f'Scenes are made of photographs and digits in scikit-learn and scikit-image '
        f'({error}). Install them: pip install -r requirements/benchmarks.txt')
