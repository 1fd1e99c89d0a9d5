"""The noise study: corruptions by degrees, confidence bands, and what the command reports."""

import csv
import math

import numpy as np
import pytest
import torch
from helpers import tiny_data
from helpers.running import run_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gkd.detectors.images import ChannelMap, ImageFormat
from gkd.errors import DataError
from gkd.knowledge import robust_weights
from gkd.looking.agreement import coordinates, mean_with_band, typicality
from gkd.prototypes import PrototypeBank
from gkd.prototypes.features import CandidateImage
from studies.corruptions import CORRUPTIONS, MOST_ERASED, corrupt
from studies.noise_pairs import read_changes, table
from studies.noise_study import (
    ALL,
    MEASURES,
    OWN,
    Study,
    choose_instances,
    measure,
    report,
    versions_of,
    write_csv,
)
from studies.pixels import Pixels

BOX = torch.tensor([14.0, 20.0, 54.0, 50.0])
DEGREES = (0, 0.25, 0.5, 0.75, 1)
every_kind = pytest.mark.parametrize('kind', CORRUPTIONS)


def textured(seed=0, size=72):
    """Structure of every size, coarse and fine, with no value that occlusion fills in."""
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    coarse = torch.nn.functional.interpolate(noise[None, :, ::12, ::12], size, mode='bilinear')[0]
    return noise + 2 * coarse + 0.1


@every_kind
def test_degree_zero_changes_nothing(kind):
    image = textured()
    corrupted = corrupt(image, BOX, kind, 0)
    assert torch.equal(corrupted, image)
    assert corrupted.data_ptr() != image.data_ptr()


@every_kind
@pytest.mark.parametrize('box', [(14, 20, 54, 50), (0, 0, 30, 72), (60.5, 61.2, 80, 90),
                                 (40, 40, 40.3, 40.2), (-9, 30, 1, 34)])
def test_all_outside_of_the_box_stays(kind, box):
    image = textured()
    before = image.clone()
    corrupted = corrupt(image, torch.tensor(box, dtype=torch.float), kind, 1)
    assert torch.equal(image, before)
    assert corrupted.isfinite().all()
    x1, y1 = (max(0, math.floor(value)) for value in box[:2])
    x2, y2 = (min(72, math.ceil(value)) for value in box[2:])
    outside = torch.ones(72, 72, dtype=torch.bool)
    outside[y1:y2, x1:x2] = False
    assert torch.equal(corrupted[:, outside], image[:, outside])


@every_kind
@pytest.mark.parametrize('seed', range(3))
def test_a_higher_degree_changes_more(kind, seed):
    image = textured(seed)
    changes = [(corrupt(image, BOX, kind, degree, seed) - image).square().sum().item()
               for degree in DEGREES]
    assert changes == sorted(changes) and len(set(changes)) == len(changes)


@pytest.mark.parametrize('kind', ['Gaussian blur', 'motion blur', 'down-scaling'])
def test_blur_removes_detail_and_keeps_colour(kind):
    image = textured()
    inside = (slice(None), slice(20, 50), slice(14, 54))
    detail = [corrupt(image, BOX, kind, degree, 3)[inside].diff(dim=2).square().mean().item()
              + corrupt(image, BOX, kind, degree, 3)[inside].diff(dim=1).square().mean().item()
              for degree in DEGREES]
    assert detail == sorted(detail, reverse=True) and detail[-1] < detail[0] / 4
    flat = torch.full((3, 72, 72), 0.7)
    torch.testing.assert_close(corrupt(flat, BOX, kind, 1), flat)


@pytest.mark.parametrize('kind', ['Gaussian blur', 'motion blur'])
@pytest.mark.parametrize('degree', [0.3, 1])
def test_blur_is_that_of_the_whole_image(kind, degree):
    image = textured(size=120)
    box = torch.tensor([40.0, 45.0, 80.0, 75.0])
    inside = (slice(None), slice(45, 75), slice(40, 80))
    whole = CORRUPTIONS[kind](image, 1200 ** 0.5, degree, 7)
    torch.testing.assert_close(corrupt(image, box, kind, degree, 7)[inside], whole[inside])


@given(seed=st.integers(0, 2 ** 31), low=st.floats(0.05, 1), high=st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_occlusion_erases_its_share_and_more_of_the_same(seed, low, high):
    low, high = sorted((low, high))
    ones = torch.ones(1, 72, 72)
    erased = [corrupt(ones, BOX, 'occlusion', degree, seed)[0] == 0 for degree in (low, high)]
    for degree, pixels in zip((low, high), erased):
        # Both sides are rounded to whole pixels.
        assert abs(int(pixels.sum()) - MOST_ERASED * degree * 40 * 30) <= (40 + 30) / 2 + 1
    # kornia rounds the corner down, so what a smaller one covers may stick out by a pixel.
    rows, columns = (erased[0] & ~erased[1]).any(dim=1), (erased[0] & ~erased[1]).any(dim=0)
    assert min(int(rows.sum()), int(columns.sum())) <= 1


def test_seeds_move_occlusion_and_motion():
    image = textured()
    for kind, moves in (('occlusion', True), ('motion blur', True), ('Gaussian blur', False)):
        results = [corrupt(image, BOX, kind, 0.5, seed) for seed in (1, 2, 1)]
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[0], results[1]) != moves
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    corrupt(image, BOX, 'occlusion', 0.5)
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers are left alone


def test_strength_is_relative_to_the_instance():
    image = textured(size=160)
    large = torch.nn.functional.interpolate(image[None], scale_factor=2, mode='nearest')[0]
    box = torch.tensor([40.0, 40.0, 100.0, 100.0])
    changes = [(corrupt(*pair, 'Gaussian blur', 0.5) - pair[0]).square().sum().item() / area
               for pair, area in (((image, box), 1), ((large, 2 * box), 4))]
    assert changes[1] == pytest.approx(changes[0], rel=0.05)


@pytest.mark.parametrize(('kind', 'degree'), [('fog', 0.5), ('occlusion', 1.1),
                                              ('occlusion', -0.1)])
def test_refuses_what_it_does_not_know(kind, degree):
    with pytest.raises(ValueError, match='kind|degree'):
        corrupt(textured(), BOX, kind, degree)


CAFFE = ImageFormat((103.5, 116.3, 123.7), (1.0, 1.0, 1.0))
TORCH = ImageFormat((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), rgb=True)


@pytest.mark.parametrize('made', [TORCH, CAFFE, ImageFormat()])
def test_corruptions_are_the_same_however_a_pipeline_normalises(made):
    raw = 255 * textured() / 3.1  # blue first

    def turn(images, given, wanted):
        return ChannelMap(given, wanted)(images, [(72, 72)] * len(images))

    pixels = Pixels(made, CAFFE if made == CAFFE else TORCH)
    [image], [normalised] = (turn(raw[None], ImageFormat(), wanted) for wanted in (made, TORCH))
    versions = versions_of(image, BOX, (72, 72), pixels, DEGREES[1:], 4)
    expected = [normalised] + [corrupt(normalised, BOX, kind, degree, 4)
                               for kind in CORRUPTIONS for degree in DEGREES[1:]]
    torch.testing.assert_close(turn(versions, made, TORCH), torch.stack(expected), rtol=1e-4,
                               atol=1e-5)


def test_padding_stays_and_nothing_of_it_is_blurred_in():
    pixels = Pixels(TORCH, TORCH)
    content = textured(size=60)
    images = [torch.nn.functional.pad(content, (0, 12, 0, 4), value=value) for value in (0, 99)]
    box = torch.tensor([30.0, 20.0, 60.0, 60.0])
    some, others = (versions_of(image, box, (60, 60), pixels, [1.0], 0) for image in images)
    torch.testing.assert_close(some[:, :, :60, :60], others[:, :, :60, :60])
    assert (some[:, :, 60:] == 0).all() and (others[:, :, :, 60:] == 99).all()


def test_band_of_independent_instances_is_the_textbooks():
    values = torch.randn(50, 3, dtype=torch.double)
    mean, half = mean_with_band(values, torch.arange(50))
    torch.testing.assert_close(mean, values.mean(dim=0))
    expected = 1.959964 * values.std(dim=0, unbiased=True) / 50 ** 0.5
    torch.testing.assert_close(half, expected, rtol=1e-5, atol=0)


def test_band_counts_copies_of_an_image_once():
    values = torch.randn(20, dtype=torch.double)
    _, alone = mean_with_band(values, torch.arange(20))
    _, copied = mean_with_band(values.repeat(7), torch.arange(20).repeat(7))
    torch.testing.assert_close(copied, alone)
    assert mean_with_band(values, torch.zeros(20, dtype=torch.long))[1] == torch.inf


def test_deviations_in_one_image_cancel():
    mean, half = mean_with_band(torch.tensor([1.0, 3.0, 0.5, 3.5]), torch.tensor([7, 7, 2, 2]))
    assert mean == 2 and half == 0


def test_band_holds_the_mean_as_often_as_it_says():
    # 60 images of 1 to 5 instances that share half of their variance.
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(60).repeat_interleave(torch.arange(60) % 5 + 1)
    held = {0.95: 0, 0.5: 0}
    for _ in range(400):
        shared = torch.randn(60, generator=generator)[groups]
        values = shared + torch.randn(len(groups), generator=generator) + 3
        for confidence in held:
            mean, half = mean_with_band(values, groups, confidence)
            held[confidence] += int((mean - 3).abs() <= half)
    assert 0.90 < held[0.95] / 400 < 0.98
    assert 0.42 < held[0.5] / 400 < 0.58


def test_typicality_gives_the_robust_weight():
    bank = random_bank()
    labels = torch.randint(0, 3, (40,))
    student, teacher = torch.randn(40, 5), torch.randn(40, 4)
    typical = [typicality(coordinates(*pair), labels, bank.offsets[0])
               for pair in ((student, bank.student[0]), (teacher, bank.teacher[0]))]
    weights = (1 - (typical[0] - typical[1]).abs()).clamp(0, 1).nan_to_num(nan=1.0)
    torch.testing.assert_close(weights, robust_weights(
        student, teacher, bank.student[0], bank.teacher[0], labels, bank.offsets[0]))
    assert torch.equal(typical[0].isnan(), labels == 1)


def random_bank(levels=2):
    return PrototypeBank(student=[torch.randn(4, 5) for _ in range(levels)],
                         teacher=[torch.randn(4, 4) for _ in range(levels)],
                         offsets=[torch.tensor([0, 3, 3, 4])] * levels)


def test_measures_on_the_own_level_and_on_all():
    bank = random_bank()
    versions = 1 + 2 * len(CORRUPTIONS)
    teacher, student = ([torch.randn(versions, width) for _ in range(2)] for width in (4, 5))
    large = torch.tensor([0.0, 0.0, 150.0, 150.0])  # belongs to level 1
    values = measure(teacher, student, bank, torch.tensor(0), large)
    values = values.unflatten(-1, (len(CORRUPTIONS), -1))
    assert values.shape == (2, len(MEASURES), len(CORRUPTIONS), 3)
    weights = [robust_weights(student[level], teacher[level], bank.student[level],
                              bank.teacher[level], torch.zeros(versions, dtype=torch.long),
                              bank.offsets[level]) for level in range(2)]
    row = MEASURES.index('weight')
    torch.testing.assert_close(values[0, row, 0], weights[1][[0, 1, 2]])
    torch.testing.assert_close(values[0, row, 1], weights[1][[0, 3, 4]])
    torch.testing.assert_close(values[1, row, 3], ((weights[0] + weights[1]) / 2)[[0, 7, 8]])
    assert (values[:, :2, :, 0] < 1e-6).all()  # nothing is far from itself
    gaps = [coordinates(student[1], bank.student[1]) - coordinates(teacher[1], bank.teacher[1])]
    torch.testing.assert_close(values[0, MEASURES.index('discrepancy'), 2, 2],
                               gaps[0][6].abs().mean())


def make_study(slopes, spread=0.01, count=40):
    """A study in which a measure changes with the degree as told, plus noise.

    Args:
        slopes: Change from one degree to the next, by measure, kind and place.
        spread: Standard deviation of the noise.
        count: Number of instances.
    """
    values = torch.rand(count, 2, len(MEASURES), len(CORRUPTIONS), 1).expand(-1, -1, -1, -1, 3)
    values = values + spread * torch.randn(count, 2, len(MEASURES), len(CORRUPTIONS), 3)
    for (name, kind, where), slope in slopes.items():
        place = (OWN, ALL).index(where), MEASURES.index(name), list(CORRUPTIONS).index(kind)
        values[:, place[0], place[1], place[2]] += slope * torch.arange(3)
    return Study((0.0, 0.5, 1.0), values, torch.arange(count))


def test_verdict_looks_at_changes_not_at_the_spread_of_instances():
    study = make_study({('weight', 'occlusion', OWN): -0.02, ('weight', 'occlusion', ALL): 0.02,
                        ('discrepancy', 'occlusion', OWN): 0.02,
                        ('weight', 'motion blur', OWN): 0.02})
    assert study.verdict('occlusion', 'weight') == 'falls'
    assert study.verdict('occlusion', 'weight', ALL) == 'rises'
    assert study.verdict('occlusion', 'discrepancy') == 'rises'
    assert study.verdict('motion blur', 'weight') == 'rises'
    mean, half = study.change('occlusion', 'weight')
    assert mean[0] == half[0] == 0
    assert mean[2] == pytest.approx(-0.04, abs=0.01) and half[2] < 0.01
    assert study.band('occlusion', 'weight')[1][0] > 0.05  # instances differ much more
    assert make_study({}, spread=0).verdict('occlusion', 'weight') == 'no clear change'


def test_report_says_whether_the_claim_holds():
    slopes = {'occlusion': (-0.02, 0.02), 'motion blur': (0.02, 0.02),
              'down-scaling': (-0.02, -0.02)}
    study = make_study({(measure, kind, OWN): slope for kind, pair in slopes.items()
                        for measure, slope in zip(('weight', 'discrepancy'), pair)}, spread=0.001)
    rows = [line for line in report(study).splitlines() if line.startswith(f'| {OWN} |')]
    assert [row.rsplit('|', 2)[1].strip() for row in rows[1:]] == [
        'does not hold', 'holds', 'does not hold']


def test_pairs_are_counted_and_averaged_by_teacher(tmp_path):
    slopes = {('a', 0): -0.02, ('a', 1): -0.04, ('b', 0): 0.01, ('b', 1): 0.0}
    for (teacher, student), slope in slopes.items():
        folder = tmp_path / teacher / str(student)
        folder.mkdir(parents=True)
        study = make_study({('weight', 'occlusion', OWN): slope}, spread=0.001)
        write_csv(study, str(folder / 'noise_study.csv'))
    changes = read_changes(str(tmp_path))
    assert [len(pairs) for pairs in changes] == [2, 2]
    [row] = [line for line in table(changes).splitlines()
             if line.startswith(f'| {OWN} | occlusion |')]
    weight, clearly = row.split('|')[5:7]
    assert float(weight.split()[0]) == pytest.approx(-0.025, abs=0.001)
    assert clearly.strip() == '2, 1'
    with pytest.raises(DataError, match='noise_study.csv'):
        read_changes(str(tmp_path / 'a'))


def test_chooses_instances_at_random_and_once():
    images = [CandidateImage(None, number, np.full((count, 4), number, np.float32),
                             np.arange(count)) for number, count in enumerate((3, 1, 5))]
    chosen = choose_instances(images, 4, seed=0)
    assert sum(len(image.labels) for image in chosen) == 4
    assert [image.index for image in chosen] == sorted({image.index for image in chosen})
    for image in chosen:
        assert len(set(image.labels)) == len(image.labels) == len(image.boxes)
        assert (image.boxes == image.index).all()
    everything = choose_instances(images, 99, seed=0)
    assert [len(image.labels) for image in everything] == [3, 1, 5]
    assert [list(image.labels) for image in choose_instances(images, 4, seed=0)] == [
        list(image.labels) for image in chosen]


def test_command_writes_what_it_prints(tmp_path):
    _, config = tiny_data.write_pair(tmp_path, 'one_stage')
    checkpoint = tiny_data.write_weights(tmp_path / 'student.pth',
                                         tiny_data.small.retinanet(), seed=1)
    out = tmp_path / 'out'
    status, stdout, stderr = run_tool('noise_study', config, checkpoint, '--instances', 3,
                                      '--degrees', 1, '--out', out)
    assert status == 0, stderr
    assert '3 instances in' in stdout
    assert (out / 'noise_study.md').read_text().strip() in stdout
    table = list(csv.DictReader((out / 'noise_study.csv').open()))
    assert len(table) == 2 * len(MEASURES) * len(CORRUPTIONS) * 2
    for row in table:
        if row['degree'] == '0.0':
            assert float(row['change']) == 0
    moved = [float(row['mean']) for row in table
             if row['measure'] == 'distance, teacher' and row['degree'] == '1.0']
    assert len(moved) == 8 and min(moved) > 0
    for name in ('noise_study.png', 'examples.png'):
        assert np.asarray(Image.open(out / name).convert('L')).std() > 5

    status, _, stderr = run_tool('noise_study', config, '--out', out)
    assert status == 2 and 'untrained' in stderr
    status, _, stderr = run_tool('noise_study', tmp_path / 'student.py', '--out', out)
    assert status == 2 and 'Distiller' in stderr
