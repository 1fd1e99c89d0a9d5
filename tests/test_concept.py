"""The figures that explain the method: what they are drawn from."""

import re

import numpy as np
import pytest
import torch
from helpers import tiny_data
from helpers.running import run_tool
from PIL import Image

from gkd.errors import DataError
from gkd.looking.trained import TrainedPair, validation_images
from gkd.looking.trust import judge
from gkd.running import load_config
from studies.concept import locate, same_prototypes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where a tiny config, ``distiller.py``, and two checkpoints of its student are."""
    folder = tmp_path_factory.mktemp('pair')
    tiny_data.write_pair(folder, 'one_stage')
    for seed in (1, 2):
        tiny_data.write_weights(folder / f'student_{seed}.pth', tiny_data.small.retinanet(),
                                seed=seed)
    return folder


@pytest.fixture(scope='module')
def config(folder):
    return str(folder / 'distiller.py')


@pytest.fixture(scope='module')
def trained(folder, config):
    return TrainedPair(load_config(config), str(folder / 'student_1.pth'))


@pytest.fixture(scope='module')
def basis(folder, trained):
    return trained.generate(str(folder / 'cache'))


@pytest.mark.parametrize('label', range(len(tiny_data.CLASSES)))
def test_the_largest_coordinate_is_the_typicality(trained, basis, label):
    """Trust is computed elsewhere, of all classes together."""
    images = validation_images(trained.config, min_size=0)
    located = locate(trained, basis.bank, images, label)
    trust = judge(trained, basis.bank, images)
    own = trust.labels == label
    assert len(located.paths) == int(own.sum()) > 0
    assert (located.boxes == trust.boxes[own.numpy()]).all()
    for found, expected in ((located.teacher, trust.teacher), (located.student, trust.student)):
        torch.testing.assert_close(torch.stack([one.max() for one in found]), expected[own])


def test_discrepancies_average_over_prototypes(trained, basis):
    images = validation_images(trained.config, min_size=0)
    located = locate(trained, basis.bank, images, 0)
    expected = [sum(abs(float(a - b)) for a, b in zip(teacher, student)) / len(teacher)
                for teacher, student in zip(located.teacher, located.student)]
    torch.testing.assert_close(located.discrepancies(), torch.tensor(expected))


def test_no_instance_is_an_error(trained, basis):
    images = validation_images(trained.config, min_size=0)
    for image in images:
        image.labels = image.labels * 0
    with pytest.raises(DataError, match='class blue'):
        locate(trained, basis.bank, images, 2)


def test_another_student_sees_the_same_instances(folder, config, basis):
    bank = same_prototypes(basis, basis)
    for own, same in zip(basis.bank.student, bank.student):
        assert torch.equal(own, same)
    other = TrainedPair(load_config(config), str(folder / 'student_2.pth'))
    later = other.generate(str(folder / 'cache'))
    bank = same_prototypes(basis, later)
    assert bank.teacher is basis.bank.teacher
    for level in range(bank.num_levels):
        rows = torch.cat([basis.rows(level, label) for label in range(len(basis.classes))])
        assert torch.equal(bank.student[level], later.student[level][rows])
        assert not torch.equal(bank.student[level], basis.bank.student[level])


def test_figures_are_drawn(folder, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = str(folder / 'student_1.pth')
    status, stdout, stderr = run_tool('draw_concept', config, student, '--after', student,
                                      '--out', tmp_path / 'out', '--instances', 1)
    assert status == 0, stderr
    before, after = re.findall(r'by (\d\.\d{3})', stdout)
    assert before == after  # the same student
    for name in ('spaces', 'coordinates', 'weights'):
        with Image.open(tmp_path / 'out' / f'{name}.jpg') as picture:
            assert len(np.unique(np.asarray(picture))) > 50
