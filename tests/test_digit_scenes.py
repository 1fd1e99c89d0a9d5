"""Digit scenes: what the annotations say of a digit is true, and validation shares nothing."""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.scene_configs import build_with_data
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gkd.datasets import digit_scenes, scenes
from gkd.datasets.degrees import evaluate_by_degree
from gkd.datasets.digit_scenes import digit_symbols, draw_digit, prepare_digit_scenes
from gkd.datasets.scenes import Scene, Symbol, make_scene
from gkd.errors import DataError
from gkd.repository import REPOSITORY

CONFIGS = Path(REPOSITORY, 'configs', 'digits')
FIGURES = ('1110', '0100', '1101', '1011', '0101', '1000', '0110', '0011', '1111', '1001')
EXPECTED_SOURCE = {'photograph': 'china', 'region': [11, 95, 185, 185]}
EXPECTED_DIGITS = [
    # class, scan, size, blur, occlusion
    (5, 940, 42, 0.0, 0.0), (4, 1567, 56, 0.0, 0.0), (8, 114, 47, 0.0, 0.235),
    (5, 1713, 50, 0.38, 0.0), (8, 664, 68, 0.0, 0.0)]
EXPECTED_BLOCKS = [[[200, 190, 184], [78, 86, 94]], [[102, 116, 119], [54, 62, 74]]]

RED, BLUE = (0, 0, 200), (200, 0, 0)


@pytest.fixture
def sources(monkeypatch):
    """Stand-ins for the packages' digits and photographs; few images.

    Scans are blocks of ink. Photographs are red where training may look, blue elsewhere; digits
    are drawn in black.
    """
    scans = np.array([np.kron(np.array(list(figure), int).reshape(2, 2), np.ones((4, 4)))
                      for figure in FIGURES] * 10)[:95] * 255
    photographs = {}
    for name, (height, width) in dict(wide=(300, 500), high=(410, 400)).items():
        photographs[name] = np.empty((height, width, 3), np.uint8)
        photographs[name][:, :width * 6 // 10] = RED
        photographs[name][:, width * 6 // 10:] = BLUE
    monkeypatch.setattr(digit_scenes, 'load_scans', lambda: (
        scans.astype(np.uint8), np.arange(95) % 10))
    monkeypatch.setattr(scenes, 'load_photographs', lambda: photographs)
    monkeypatch.setattr(scenes, '_colour', lambda *_: np.zeros(3, np.int32))
    monkeypatch.setattr(digit_scenes, 'IMAGES', dict(train=12, val=8))
    return photographs


def test_splits_share_neither_scans_nor_photographs(sources, tmp_path):
    root = prepare_digit_scenes(tmp_path / 'digits')
    used = {}
    for split, absent, count in (('train', 0, 12), ('val', 2, 8)):
        coco = json.loads((root / f'{split}.json').read_text())
        assert len(coco['images']) == count
        used[split] = {annotation['scan'] for annotation in coco['annotations']}
        for image in coco['images']:
            pixels = cv2.imread(str(root / 'images' / image['file_name']))
            assert pixels.shape == (256, 256, 3) and pixels.any()
            assert not pixels[..., absent].any()
            x, y, width, height = image['region']
            shown = sources[image['photograph']][y:y + height, x:x + width]
            assert shown.shape == (height, width, 3) and (shown == shown[0, 0]).all()
            assert not shown[..., absent].any()
    assert max(used['train']) < 66 <= min(used['val'])  # of 95


def test_annotations_fit_the_images(sources, tmp_path):
    root = prepare_digit_scenes(tmp_path / 'digits')
    scans, labels = digit_scenes.load_scans()
    degrees = dict(blur=[], occlusion=[], size=[])
    for split in ('train', 'val'):
        coco = COCO(root / f'{split}.json')
        assert [category['name'] for category in coco.cats.values()] == list('0123456789')
        for annotation in coco.anns.values():
            assert coco.cats[annotation['category_id']]['name'] == str(labels[annotation['scan']])
            x, y, width, height = annotation['bbox']
            assert min(x, y) >= 0 and max(x + width, y + height) <= 256
            assert annotation['area'] == width * height and annotation['iscrowd'] == 0
            if annotation['occlusion'] == 0:
                # an edge is where ink is half, to a fraction of a scanned pixel
                assert abs(max(width, height) - annotation['size']) <= 1 + annotation['size'] / 40
            if annotation['blur'] == annotation['occlusion'] == 0:
                name = coco.imgs[annotation['image_id']]['file_name']
                ink = cv2.imread(str(root / 'images' / name))[
                    y:y + height, x:x + width].max(2) <= 150  # half black, half red under a rim
                drawn = draw_digit(scans[annotation['scan']], annotation['size']) >= 128
                box = cv2.boundingRect(drawn.astype(np.uint8))
                drawn = drawn[box[1]:box[1] + box[3], box[0]:box[0] + box[2]]
                assert drawn.shape == ink.shape
                assert ink[drawn].all()
            for degree, values in degrees.items():
                values.append(annotation[degree])
    blur, occlusion, size = map(np.array, degrees.values())
    assert 24 <= size.min() < 32 and 72 < size.max() <= 96
    assert (blur == 0).any() and 1 < blur.max() <= 3 and (blur <= size / 12 + 0.01).all()
    assert (occlusion == 0).any() and 0.3 < occlusion.max() <= 0.6 and occlusion.min() >= 0


def test_paste_hides_what_is_below_and_only_that():
    scene = Scene(np.full((256, 256, 3), 100, np.uint8))
    ink = np.zeros((256, 256), bool)
    ink[50:60, 20:60] = True
    scene.symbols.append(Symbol(3, 0, 40, 0.0, ink.sum(), ink.copy()))
    opacity = np.zeros((256, 256), np.uint8)
    opacity[40:80, 50:90] = 255
    opacity[40:80, 40:50] = 51  # a fifth: what is below can be seen
    scene.paste(np.full((256, 256, 3), (0, 200, 250)), opacity)
    assert scene.symbols[0].occlusion == 0.25
    assert (scene.symbols[0].visible == ink & (opacity < 255)).all()
    assert scene.image[60, 70].tolist() == [0, 200, 250]
    assert scene.image[60, 45].tolist() == [80, 120, 130]
    assert scene.image[60, 39].tolist() == scene.image[80, 60].tolist() == [100] * 3

    later = np.zeros((256, 256), bool)
    later[60:70, 60:70] = True
    scene.symbols.append(Symbol(4, 0, 10, 0.0, later.sum(), later))
    assert scene.symbols[1].occlusion == 0


def test_later_digits_hide_earlier_ones_and_hidden_ones_are_dropped(sources, monkeypatch,
                                                                     tmp_path):
    symbols = digit_symbols(*digit_scenes.load_scans())
    hidden = 0
    for seed in range(10):
        scene, _ = make_scene(np.random.default_rng(seed), symbols, 'val', sources)
        sharp = [digit for digit in scene.symbols if digit.blur == 0]
        assert sum(digit.visible.astype(int) for digit in sharp).max() <= 1
        hidden += sum(digit.occlusion > 0 for digit in sharp)
    assert hidden > 3

    def stacked(generator, shape, occupied):
        return 100, 100

    # all the same block of ink at the same place
    monkeypatch.setattr(scenes, '_place', stacked)
    monkeypatch.setattr(scenes, 'log_uniform', lambda *_: 40)
    monkeypatch.setattr(scenes, 'MAX_BLUR', 0.3)
    monkeypatch.setattr(digit_scenes, 'load_scans', lambda: (
        np.full((100, 8, 8), 255, np.uint8), np.arange(100) % 10))
    root = prepare_digit_scenes(tmp_path / 'stacked')
    annotations = json.loads((root / 'train.json').read_text())['annotations']
    assert [annotation['image_id'] for annotation in annotations] == list(range(1, 13))


def test_digits_are_drawn_upright_sharp_and_as_large_as_asked():
    scan = np.zeros((8, 8), np.uint8)
    scan[1:7, 2] = scan[6, 2:6] = 255  # an L, 6 pixels high and 4 wide
    for size in (16, 37, 80):
        drawn = draw_digit(scan, size)
        _, _, width, height = cv2.boundingRect((drawn >= 128).astype(np.uint8))
        assert abs(height - size) <= 2 and abs(width - size * 4 / 6) <= 2
        small = cv2.resize(drawn, (6, 8), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), scan[:, 1:7].ravel())[0, 1] > 0.9
        # a smooth edge of about a pixel on each side of the stroke, at every size
        stroke = drawn[drawn.shape[0] // 2]
        assert ((stroke > 0) & (stroke < 255)).sum() <= 6


def test_seed_decides_everything(sources, tmp_path):
    def content(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob('*.*')}

    first = content(prepare_digit_scenes(tmp_path / 'a'))
    np.random.seed(1)  # global state is not asked
    assert first == content(prepare_digit_scenes(tmp_path / 'b'))
    other = content(prepare_digit_scenes(tmp_path / 'c', seed=1))
    assert first.keys() == other.keys() and all(first[path] != other[path] for path in first)


def test_images_of_real_digits_stay_the_same():
    """Numbers reported elsewhere hold for these images. Count RECIPE up if they must change."""
    pytest.importorskip('sklearn')
    pytest.importorskip('skimage')
    scans, labels = digit_scenes.load_scans()
    assert scans.shape == (1797, 8, 8) and (scans.min(), scans.max()) == (0, 255)
    symbols = replace(digit_symbols(scans, labels), splits=dict(all=np.arange(1797)))
    scene, source = make_scene(
        np.random.default_rng([0, 0, 1]), symbols, 'all', scenes.load_photographs())
    assert source == EXPECTED_SOURCE
    assert [(d.label, d.example, d.size, d.blur, round(d.occlusion, 3)) for d in scene.symbols] \
        == EXPECTED_DIGITS
    # JPEG decoders may differ by a grey value
    blocks = cv2.resize(scene.image, (2, 2), interpolation=cv2.INTER_AREA).astype(int)
    assert abs(blocks - EXPECTED_BLOCKS).max() <= 1


def test_photographs_are_large_enough_and_need_no_download(monkeypatch):
    pytest.importorskip('sklearn')
    pytest.importorskip('skimage')

    def refuse(*_):
        raise OSError('no network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    photographs = scenes.load_photographs()
    assert len(photographs) == 11
    for name, photograph in photographs.items():
        assert photograph.dtype == np.uint8 and photograph.shape[2] == 3, name
        height, width = photograph.shape[:2]
        assert min(height, 0.4 * width) >= scenes.MIN_REGION, name
    blue, _, red = photographs['coffee'].mean((0, 1))
    assert red > 2 * blue  # a red cup on wood


def test_missing_package_is_named_with_its_remedy(monkeypatch, tmp_path):
    for package in ('sklearn.datasets', 'skimage'):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(DataError, match='pip install -r requirements/benchmarks.txt'):
                prepare_digit_scenes(tmp_path / 'digits')
        assert [path.name for path in tmp_path.iterdir()] == ['.digits.lock']


def test_complete_data_set_is_kept_and_another_replaced(sources, tmp_path, monkeypatch):
    root = prepare_digit_scenes(tmp_path / 'digits')
    (root / 'mark').touch()
    prepare_digit_scenes(root)
    assert (root / 'mark').exists()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scenes, 'make_scene', interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_digit_scenes(root, seed=1)
    assert {path.name for path in tmp_path.iterdir()} == {'digits', '.digits.lock'}
    assert (root / 'mark').exists()
    prepare_digit_scenes(root, seed=1)
    assert not (root / 'mark').exists() and (root / 'val.json').exists()


@pytest.mark.parametrize('stamp', [None, '{"data_set": "tree_crowns"}', '[', '[]'])
def test_foreign_folder_is_left_alone(sources, tmp_path, stamp):
    name = 'thesis.txt' if stamp is None else 'recipe.json'
    (tmp_path / name).write_text(stamp or '')
    with pytest.raises(DataError, match=str(tmp_path)):
        prepare_digit_scenes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# AP by degree

def coco_of(annotations, images=3):
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=i, width=256, height=256) for i in range(1, images + 1)],
        categories=[dict(id=c, name=str(c)) for c in (1, 2)],
        annotations=[dict(id=i, iscrowd=0, area=400, **annotation)
                     for i, annotation in enumerate(annotations, 1)])
    coco.createIndex()
    return coco


def annotation(image_id, category_id, x, blur):
    return dict(image_id=image_id, category_id=category_id, bbox=[x, 10, 20, 20], blur=blur)


def detection(image_id, category_id, x, score):
    return dict(image_id=image_id, category_id=category_id, bbox=[x, 10, 20, 20], score=score)


def test_instances_outside_the_range_are_neither_missed_nor_wrong():
    coco = coco_of([annotation(1, 1, 10, 0), annotation(1, 1, 60, 2), annotation(2, 2, 10, 0),
                    annotation(2, 2, 60, 1)])
    ranges = dict(blur=((0, 1), (1, 2), (2, 3), (3, 4)))
    found = [detection(1, 1, 10, 0.9), detection(2, 2, 10, 0.9), detection(2, 2, 60, 0.8)]
    sharp, little, much, none = evaluate_by_degree(coco, found, ranges)
    assert [row['instances'] for row in (sharp, little, much, none)] == [2, 1, 1, 0]
    assert [row['AP'] for row in (sharp, little, much)] == pytest.approx([1, 1, 0])
    assert np.isnan(none['AP'])
    assert (little['degree'], little['low'], little['high']) == ('blur', 1, 2)

    # one that matches nothing is wrong in every range
    wrong = [detection(1, 1, 200, 0.95), detection(2, 2, 200, 0.95)]
    sharp, little, much, _ = evaluate_by_degree(coco, found + wrong, ranges)
    assert sharp['AP'] == little['AP'] == pytest.approx(0.5) and much['AP'] == 0
    assert [row['AP'] for row in evaluate_by_degree(coco, [], ranges)[:3]] == [0, 0, 0]


def test_wide_range_is_plain_coco_ap_and_nothing_is_left_behind():
    generator = np.random.default_rng(0)
    coco = coco_of([annotation(1 + i % 3, 1 + i % 2, 25 * (i // 3), float(i % 4))
                    for i in range(24)])
    found = [dict(image_id=a['image_id'], category_id=a['category_id'],
                  bbox=(np.array(a['bbox']) + generator.uniform(-4, 4, 4)).tolist(),
                  score=generator.random()) for a in coco.anns.values()]
    ranges = dict(blur=((0, 4), (0, 2), (2, 4), (0, 4)))
    before, low, high, after = evaluate_by_degree(coco, found, ranges)
    plain = COCOeval(coco, coco.loadRes(found), 'bbox')
    plain.evaluate()
    plain.accumulate()
    plain.summarize()
    for row in (before, after):
        assert [row['AP'], row['AP50'], row['AP75']] == pytest.approx(plain.stats[:3])
        assert row['instances'] == 24
    assert low['AP'] != high['AP'] and 0 < before['AP75'] < before['AP50']


def test_annotation_without_the_degree_is_named():
    coco = coco_of([annotation(1, 1, 10, 0), annotation(2, 1, 10, 0)])
    with pytest.raises(DataError, match='annotation 1 of image 1 has no size'):
        evaluate_by_degree(coco, [], dict(blur=((0, 1),), size=((0, 1),)))


# Configs

@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_config_builds_and_fits_the_data(sources, tmp_path, path):
    train = build_with_data(path, prepare_digit_scenes(tmp_path / 'digits'), digit_scenes.CLASSES)
    # a mirrored digit is none
    assert not any(train[index]['img_metas'].data['flip'] for index in range(12))
