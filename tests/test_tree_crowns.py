"""The tree-crown data set: every tree where it belongs, and all or nothing on disk."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from gkd.datasets import tree_crowns, wheels
from gkd.errors import DataError


@pytest.fixture
def scenes(monkeypatch):
    """Two small scenes in place of the wheel's. Returns their boxes."""
    generator = np.random.default_rng(0)
    boxes, files = {}, {}
    for scene, (height, width) in zip(tree_crowns.SCENES, [(700, 1000), (300, 900)]):
        corner = generator.uniform([1, 1], [width - 60, height - 60], (60, 2)).astype(int)
        boxes[scene] = np.concatenate([corner, corner + generator.integers(12, 60, (60, 2))], 1)
        objects = ''.join(
            '<object><name>Tree</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
            '<ymax>{}</ymax></bndbox></object>'.format(*box) for box in boxes[scene])
        image = generator.integers(0, 256, (height, width, 3), np.uint8)
        name = 'deepforest/data/' + scene
        files[name + '.xml'] = f'<annotation>{objects}</annotation>'.encode()
        files[name + '.png'] = cv2.imencode('.png', image)[1].tobytes()
    monkeypatch.setattr(tree_crowns, 'read_from_wheel',
                        lambda requirement, sha256, members: {m: files[m] for m in members})
    return boxes


def test_every_validation_tree_counts_once(scenes, tmp_path):
    root = tree_crowns.prepare_tree_crowns(tmp_path / 'crowns')
    val = COCO(root / 'val.json')
    expected = 0
    for boxes, width in zip(scenes.values(), (1000, 900)):
        line = round(0.7 * width)
        inside = (boxes[:, 2].clip(line) - (boxes[:, 0] - 1).clip(line)) / (
            boxes[:, 2] - boxes[:, 0] + 1)
        expected += int((inside >= 0.4).sum())
    counted = [a for a in val.anns.values() if not a['iscrowd']]
    assert 0 < len(counted) == expected
    assert any(a['iscrowd'] for a in val.anns.values())


def test_no_tile_crosses_the_line_and_tiles_are_cut_where_their_name_says(scenes, tmp_path):
    root = tree_crowns.prepare_tree_crowns(tmp_path / 'crowns')
    lines = dict(zip(tree_crowns.SCENES, (700, 630)))
    for split in ('train', 'val'):
        coco = COCO(root / f'{split}.json')
        assert coco.imgs
        for image in coco.imgs.values():
            scene, x, y = Path(image['file_name']).stem.rsplit('_', 2)
            pixels = cv2.imread(str(root / 'images' / image['file_name']))
            assert pixels.shape == (256, 256, 3)
            assert int(x) + 256 <= lines[scene] if split == 'train' else int(x) >= lines[scene]
            for annotation in coco.imgToAnns[image['id']]:
                x1, y1, w, h = annotation['bbox']
                assert min(x1, y1) >= 0 and max(x1 + w, y1 + h) <= 256 and min(w, h) >= 6
                full = scenes[scene] - [1, 1, 0, 0]
                shifted = np.array([x1, y1, x1 + w, y1 + h]) + [int(x), int(y)] * 2
                clipped = full.reshape(-1, 2, 2).clip(
                    [int(x), int(y)], [int(x) + 256, int(y) + 256]).reshape(-1, 4)
                assert (shifted == clipped).all(1).any()


def test_another_strip_can_validate(scenes, tmp_path):
    root = tree_crowns.prepare_tree_crowns(tmp_path / 'crowns', validation=(0.3, 0.6))
    val = json.loads((root / 'val.json').read_text())
    starts = [int(Path(i['file_name']).stem.split('_')[-2]) for i in val['images']]
    assert min(starts) >= 270 and max(starts) + 256 <= 600
    train = json.loads((root / 'train.json').read_text())
    starts = [int(Path(i['file_name']).stem.split('_')[-2]) for i in train['images']]
    assert min(starts) < 270 and max(starts) >= 600
    with pytest.raises(DataError, match='at least 256 pixels'):
        tree_crowns.prepare_tree_crowns(tmp_path / 'narrow', validation=(0.9, 1.0))


def test_complete_data_set_is_kept_and_an_old_one_replaced(scenes, tmp_path, monkeypatch):
    root = tree_crowns.prepare_tree_crowns(tmp_path / 'crowns')
    (root / 'mark').touch()
    tree_crowns.prepare_tree_crowns(root)
    assert (root / 'mark').exists()
    monkeypatch.setattr(tree_crowns, 'RECIPE', tree_crowns.RECIPE + 1)
    tree_crowns.prepare_tree_crowns(root)
    assert not (root / 'mark').exists() and (root / 'train.json').exists()


def test_interrupted_or_foreign_folder(scenes, tmp_path, monkeypatch):
    def broken(tiles):
        raise KeyboardInterrupt

    monkeypatch.setattr(tree_crowns, 'to_coco', broken)
    with pytest.raises(KeyboardInterrupt):
        tree_crowns.prepare_tree_crowns(tmp_path / 'crowns')
    assert [path.name for path in tmp_path.iterdir()] == ['.crowns.lock']

    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').touch()
    with pytest.raises(DataError, match='mine'):
        tree_crowns.prepare_tree_crowns(tmp_path / 'mine')
    assert (tmp_path / 'mine' / 'thesis.txt').exists()


def test_wheel_is_checked_before_it_is_read(tmp_path, monkeypatch):
    def pip_download(command, check):
        folder = Path(command[command.index('--dest') + 1])
        with zipfile.ZipFile(folder / 'a-1.0-py3-none-any.whl', 'w') as wheel:
            wheel.writestr(zipfile.ZipInfo('a/data.txt'), 'content')  # fixed date: fixed hash
        pip_download.sha256 = hashlib.sha256(
            (folder / 'a-1.0-py3-none-any.whl').read_bytes()).hexdigest()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, 'run', pip_download)
    with pytest.raises(DataError, match='SHA-256'):
        wheels.read_from_wheel('a==1.0', '0' * 64, ['a/data.txt'])
    content = wheels.read_from_wheel('a==1.0', pip_download.sha256, ['a/data.txt'])
    assert content == {'a/data.txt': b'content'}

    monkeypatch.setattr(subprocess, 'run',
                        lambda command, check: subprocess.CompletedProcess(command, 1))
    with pytest.raises(DataError, match='could not download a==1.0'):
        wheels.read_from_wheel('a==1.0', '0' * 64, ['a/data.txt'])
