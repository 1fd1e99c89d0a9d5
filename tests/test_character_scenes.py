"""Character scenes: 80 classes that typefaces can draw, and annotations that fit what is drawn."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.scene_configs import build_with_data

from gkd.datasets import character_scenes, scenes
from gkd.datasets.character_scenes import (
    CLASSES,
    FACES,
    character_symbols,
    distort,
    prepare_character_scenes,
    print_character,
)
from gkd.repository import REPOSITORY

CONFIGS = sorted(Path(REPOSITORY, 'configs', 'characters').glob('*.py'))


@pytest.fixture
def root(monkeypatch, tmp_path):
    """A data set of few images on plain photographs."""
    monkeypatch.setattr(scenes, 'load_photographs', lambda: dict(
        grey=np.full((400, 500, 3), 128, np.uint8)))
    monkeypatch.setattr(character_scenes, 'IMAGES', dict(train=12, val=8))
    return prepare_character_scenes(tmp_path / 'characters')


def test_typefaces_draw_every_class_and_none_like_another():
    """A typeface without a character draws the same box for each that it lacks."""
    symbols = character_symbols()
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert len(symbols.labels) == 80 * sum(map(len, FACES.values())) == 80 * 16
    for face in (face for faces in FACES.values() for face in faces):
        shapes = {cv2.resize(print_character(character, face), (16, 16)).tobytes()
                  for character in CLASSES}
        assert len(shapes) == 80, face


def test_splits_share_no_typeface(root):
    assert not set(FACES['train']) & set(FACES['val'])
    for split, faces in (('train', range(12)), ('val', range(12, 16))):
        coco = json.loads((root / f'{split}.json').read_text())
        assert [category['name'] for category in coco['categories']] == list(CLASSES)
        assert len(coco['annotations']) > 30
        for annotation in coco['annotations']:
            face, label = divmod(annotation['example'], 80)
            assert face in faces and label + 1 == annotation['category_id']
            if annotation['occlusion'] == 0:
                assert abs(max(annotation['bbox'][2:]) - annotation['size']) <= 1


def test_characters_are_turned_and_stretched_within_bounds():
    bar = np.full((120, 30), 255, np.uint8)
    drawn = [distort(np.random.default_rng(seed), bar, 60) for seed in range(200)]
    for opacity in drawn:
        assert max(opacity.shape) == 60 == opacity.shape[0]
        ink = opacity >= 128
        assert ink[[0, -1]].any(axis=1).all() and ink[:, [0, -1]].any(axis=0).all()
    angles = []
    for opacity in drawn:
        y, x = np.nonzero(opacity >= 128)
        angles.append(np.degrees(np.polyfit(y - y.mean(), x, 1)[0]))
    # at most 15 degrees and a shear of 0.2 columns for each row of the upright character
    slope = np.degrees(np.tan(np.radians(15)) + 0.2 * character_scenes.MAX_STRETCH)
    assert 15 < max(angles) < slope and -slope < min(angles) < -15
    widths = [opacity.shape[1] for opacity in drawn]
    assert min(widths) < 17 and max(widths) > 25  # of 15 where it stands upright


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds_and_fits_the_data(root, path):
    build_with_data(path, root, CLASSES)
