"""The gallery of prototypes and the pictures of trust: what they compute and what they show."""

import json
import re
import runpy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_data
from helpers.running import REPOSITORY, run_tool
from matplotlib.text import Text
from PIL import Image

from gkd.knowledge import instance_mask, robust_weights
from gkd.looking.gallery import agreement, choose_shown
from gkd.looking.trained import TrainedPair, validation_images
from gkd.looking.trust import choose_images, draw_extremes, draw_images, judge, local_masks
from gkd.prototypes import select_prototypes
from gkd.prototypes.contributions import align, contributions, principal_plane
from gkd.running import load_config


def explicit_contributions(teacher, student, chosen, alpha):
    """Squared lengths of residuals before less after, residual by residual."""
    residuals = [F.normalize(features.double(), dim=1) for features in (teacher, student)]
    units = [features.clone() for features in residuals]
    taken = []
    for k in chosen.tolist():
        before = [residual.square().sum(dim=1) for residual in residuals]
        a, b = (residual @ unit[k] for residual, unit in zip(residuals, units))
        for space, (own, other) in enumerate(((a, b), (b, a))):
            weight = ((1 + alpha) * own + alpha * other) / (1 + 2 * alpha)
            residuals[space] = residuals[space] - torch.outer(weight, units[space][k])
        taken.append([old - residual.square().sum(dim=1)
                      for old, residual in zip(before, residuals)])
    return [torch.stack(space) for space in zip(*taken)]


@pytest.mark.parametrize('alpha', [0.0, 1.0, 10.0])
def test_contributions_are_what_residuals_lose(alpha):
    teacher, student = torch.randn(30, 6), torch.randn(30, 4)
    chosen = torch.tensor([3, 17, 3, 8])
    found = contributions(teacher, student, chosen, alpha)
    expected = explicit_contributions(teacher, student, chosen, alpha)
    torch.testing.assert_close(found.teacher, expected[0])
    torch.testing.assert_close(found.student, expected[1])
    assert torch.equal(found.leaning, (expected[0] + expected[1]).argmax(dim=0))
    if alpha == 0:  # each space takes its own best coefficient, and nothing gets worse
        assert found.teacher.min() >= 0 and found.teacher.sum(dim=0).max() <= 1 + 1e-9
        assert found.teacher[0, 3] == pytest.approx(1)


def test_the_first_choice_of_the_search_explains_most():
    teacher, student = torch.randn(30, 6), torch.randn(30, 4)
    first = select_prototypes(teacher, student, 1, alpha=0.0, density_quantile=0.0)
    totals = [sum(float(space.sum()) for space in
                  explicit_contributions(teacher, student, torch.tensor([k]), 0.0))
              for k in range(30)]
    found = contributions(teacher, student, first, alpha=0.0)
    best = float(found.teacher.sum() + found.student.sum())
    # The filter of densities keeps what is strictly above its threshold: all but the sparsest.
    assert best >= sorted(totals)[-3] - 1e-9


def test_principal_plane_finds_the_widest_directions():
    flat = torch.randn(200, 2) * torch.tensor([0.3, 0.1])
    basis = torch.linalg.qr(torch.randn(7, 3)).Q
    features = flat @ basis[:, :2].T + 20 * basis[:, 2]  # lengths nearly equal, so nearly flat
    places, shares = principal_plane(features * torch.rand(200, 1).add(0.5))
    assert shares.sum() == pytest.approx(1, abs=1e-3) and shares[0] > shares[1]
    assert places.mean(dim=0).abs().max() < 1e-9
    correlation = torch.corrcoef(torch.stack([places[:, 0].float(), flat[:, 0]]))[0, 1]
    assert correlation.abs() > 0.95


def test_align_undoes_turning_and_mirroring_and_keeps_distances():
    places = torch.randn(20, 2, dtype=torch.double)
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.double)).Q
    for rotation in (turn, turn @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.double))):
        torch.testing.assert_close(align(places @ rotation, places), places)
    moved = align(3 * places, places)
    torch.testing.assert_close(torch.pdist(moved), 3 * torch.pdist(places))


def test_shows_prototypes_first():
    shown = choose_shown(torch.tensor([40, 3, 40]), total=50, most=10, seed=0)
    assert len(shown) == 10 and {3, 40} <= set(shown.tolist())
    assert shown.tolist() == sorted(set(shown.tolist()))
    assert choose_shown(torch.tensor([1]), 4, 99, seed=0).tolist() == [0, 1, 2, 3]


def test_agreement_is_of_pairs():
    features = torch.randn(50, 8)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    assert agreement(features, features @ turn) == pytest.approx(1)
    assert abs(agreement(features, torch.randn(50, 8))) < 0.2


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """A tiny distillation config, and a checkpoint of its student."""
    folder = tmp_path_factory.mktemp('pair')
    _, config = tiny_data.write_pair(folder, 'one_stage')
    checkpoint = tiny_data.write_weights(folder / 'student.pth', tiny_data.small.retinanet(),
                                         seed=1)
    return config, checkpoint


def page_data(path):
    page = path.read_text(encoding='utf-8')
    assert not re.search(r'(?:src|href)="(?!data:)', page.split('<script>')[0])
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_gallery_shows_the_prototypes_that_training_would_choose(pair, tmp_path):
    status, stdout, stderr = run_tool('gallery', *pair, '--out', tmp_path, '--instances', 5)
    assert status == 0, stderr
    assert 'agreement' in stdout
    data = page_data(tmp_path / 'gallery.html')
    trained = TrainedPair(load_config(pair[0]), pair[1])
    basis = trained.generate(str(tmp_path))
    origins = json.loads(basis.bank.metadata['origins'])
    assert data['classes'] == list(tiny_data.CLASSES) and data['total'] == len(basis.labels) == 8
    for level, expected in zip(data['levels'], origins):
        shown = [prototype for of_class in level['prototypes'] for prototype in of_class]
        assert len(shown) == len(expected) == 3 * 3
        for prototype, (filename, box, label) in zip(shown, expected):
            instance = prototype['instance']
            assert data['files'][instance].endswith(f'/{filename}')
            assert data['labels'][instance] == label
            assert data['boxes'][instance] == pytest.approx(box)
        for label, of_class in enumerate(level['prototypes']):
            assert sum(prototype['count'] for prototype in of_class) == int(
                (basis.labels == label).sum())
            for number, prototype in enumerate(of_class):
                for instance in prototype['leaning']:
                    assert level['leaning'][instance] == number
                    assert data['labels'][instance] == label
        for name in ('teacher', 'student'):
            assert len(level[name]['x']) == len(level[name]['y']) == len(data['crops'])
    assert all(uri.startswith('data:image/jpeg;base64,') for uri in data['crops'])


def test_pair_equals_the_training_s_own_generation(pair, tmp_path):
    trained = TrainedPair(load_config(pair[0]), pair[1])
    basis = trained.generate(str(tmp_path))
    distiller = trained.distiller
    datasets = [candidate.dataset for candidate in trained.generation.candidates[:1]]
    bank = distiller.generate_bank(datasets, str(tmp_path / 'other')).bank
    for name in ('teacher', 'student', 'offsets'):
        for one, other in zip(getattr(bank, name), getattr(basis.bank, name)):
            assert torch.equal(one, other)
    for level in range(bank.num_levels):
        for label in range(3):
            rows = basis.rows(level, label)
            first, last = bank.offsets[level][label:label + 2].tolist()
            assert torch.equal(basis.teacher[level][rows], bank.teacher[level][first:last])
            assert (basis.labels[rows] == label).all()


@pytest.mark.parametrize('family', ['one_stage', 'two_stage'])
def test_masks_are_those_of_a_training_step(family, tmp_path):
    _, config = tiny_data.write_pair(tmp_path, family)
    checkpoint = tiny_data.write_weights(tmp_path / 'student.pth',
                                         tiny_data.small.FAMILIES[family](), seed=1)
    trained = TrainedPair(load_config(config), checkpoint)
    bank = trained.generate(str(tmp_path)).bank
    images = validation_images(load_config(config), min_size=0)
    state = {name: value.clone() for name, value in trained.distiller.state_dict().items()}
    masks, size = local_masks(trained, bank, images[-1])
    assert size == pytest.approx((75, 100), abs=1)  # 60 x 100 is resized and then padded
    assert len(masks) == bank.num_levels
    values = torch.cat([mask.flatten() for mask in masks])
    assert 0 < values.max() <= 1 and len(values.unique()) > 1
    for name, value in trained.distiller.state_dict().items():
        assert torch.equal(value, state[name]), name  # no statistics of batches have moved

    module = trained.distiller.knowledge[0]
    module.instances = 'gt'
    (mask, *_), _ = local_masks(trained, bank, images[0])
    candidate = images[0]
    boxes = torch.from_numpy(candidate.boxes)  # 128 x 96 is neither scaled nor padded
    views = candidate.dataset.prepare_test_img(candidate.index)
    features = trained.features(views['img'][0][None], [boxes])
    weights = robust_weights(features[1][0], features[0][0], bank.student[0], bank.teacher[0],
                             torch.from_numpy(candidate.labels), bank.offsets[0])
    expected = instance_mask([boxes], [weights], 0, bank.num_levels, trained.pair.strides[0],
                             mask.shape)[0]
    torch.testing.assert_close(mask, expected)


def test_masks_of_local_knowledge_are_drawn_for_a_student_that_trains_on_masks(
        tmp_path, monkeypatch):
    monkeypatch.setitem(tiny_data.small.FAMILIES, 'mask', tiny_data.small.mask_rcnn)
    _, config = tiny_data.write_pair(tmp_path, 'mask')
    checkpoint = tiny_data.write_weights(tmp_path / 'student.pth', tiny_data.small.mask_rcnn())
    trained = TrainedPair(load_config(config), checkpoint)
    bank = trained.generate(str(tmp_path)).bank
    masks, _ = local_masks(trained, bank, validation_images(load_config(config), min_size=0)[0])
    assert max(mask.max() for mask in masks) > 0


def test_judges_and_draws(pair, tmp_path):
    trained = TrainedPair(load_config(pair[0]), pair[1])
    images = validation_images(load_config(pair[0]), min_size=0)
    trust = judge(trained, trained.generate(str(tmp_path)).bank, images)
    assert len(trust.weights) == len(trust.boxes) == 8
    torch.testing.assert_close(trust.weights,
                               (1 - (trust.teacher - trust.student).abs()).clamp(0, 1))
    spreads = [trust.weights[trust.images == number].std() for number in range(4)]
    assert choose_images(trust, 2) == np.argsort(spreads)[::-1][:2].tolist()

    out = tmp_path / 'out'
    status, stdout, stderr = run_tool('draw_trust', *pair, '--out', out, '--images',
                                      'image_1.png', '--extremes', 2)
    assert status == 0, stderr
    assert '8 instances' in stdout and 'images.png shows image_1.png\n' in stdout
    for name in ('images', 'class_red', 'class_green', 'class_blue'):
        assert np.asarray(Image.open(out / f'{name}.png').convert('L')).std() > 5
    status, _, stderr = run_tool('draw_trust', *pair, '--out', out, '--images', 'other.png')
    assert status == 2 and 'no image with boxes named other.png' in stderr


def test_pictures_of_trust_name_the_files_of_their_images(pair, tmp_path, monkeypatch):
    """As the annotations and ``--images`` do."""
    pictures = []
    monkeypatch.setattr('gkd.looking.trust.save', lambda figure, path: pictures.append(
        '\n'.join(text.get_text() for text in figure.findobj(Text))))
    trained = TrainedPair(load_config(pair[0]), pair[1])
    images = validation_images(load_config(pair[0]), min_size=0)
    bank = trained.generate(str(tmp_path)).bank
    trust = judge(trained, bank, images)
    draw_images(trained, bank, images, trust, [2, 0], 'images.png')
    assert re.findall(r'image_\d\.png', pictures.pop()) == ['image_2.png', 'image_0.png']

    draw_extremes(images, trust, 0, 1, 'class.png')
    of_class = trust.weights.masked_fill(trust.labels != 0, torch.nan)
    extremes = [images[int(trust.images[np.nanargmax(order * of_class)])].filename
                for order in (1, -1)]
    assert re.findall(r'image_\d\.png', pictures.pop()) == extremes


def test_every_class_has_a_picture_of_its_own():
    """Whatever the names are made of."""
    names = ['große Schraube', 'ワッシャー', 'ボルト', 'a b', 'a/b', '$a$']
    paths = runpy.run_path(str(REPOSITORY / 'tools' / 'draw_trust.py'))['class_paths']('f', names)
    assert len({*paths}) == len(names)
    assert paths[:2] == ['f/class_große_Schraube.png', 'f/class_ワッシャー.png']


def test_names_of_classes_are_no_formulas(pair, tmp_path, monkeypatch):
    """matplotlib would fail at this one."""
    monkeypatch.setattr('gkd.looking.trust.classes_of', lambda dataset: [r'$\nut$'] * 3)
    trained = TrainedPair(load_config(pair[0]), pair[1])
    images = validation_images(load_config(pair[0]), min_size=0)
    trust = judge(trained, trained.generate(str(tmp_path)).bank, images)
    assert draw_extremes(images, trust, 0, 2, str(tmp_path / 'class.png'))
