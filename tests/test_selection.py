"""The controls that the joint search for prototypes is measured against."""

import pytest
import torch

from gkd.errors import ConfigError
from gkd.prototypes import PrototypeGenerationModule, select_prototypes
from gkd.prototypes.selection import SELECTIONS, choose_instances


def features(num=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num, 12, generator=generator),
            torch.randn(num, 8, generator=generator).abs())


@pytest.mark.parametrize('selection', SELECTIONS)
@pytest.mark.parametrize('num', [1, 3, 60])
def test_each_gives_equally_many_and_the_same_again(selection, num):
    teacher, student = features(num)
    rows = choose_instances(selection, teacher, student, 5, seed=3)
    assert rows.shape == (5,) and rows.dtype == torch.long
    assert 0 <= rows.min() and rows.max() < num
    assert rows.equal(choose_instances(selection, teacher, student, 5, seed=3))
    if selection in ('random', 'kmeans'):
        assert len(rows.unique()) == min(num, 5)


def test_one_space_alone_ignores_the_other():
    teacher, student = features()
    _, other = features(seed=1)
    of_teacher = choose_instances('teacher', teacher, student, 5)
    of_student = choose_instances('student', teacher, student, 5)
    assert of_teacher.equal(choose_instances('teacher', teacher, other, 5))
    assert of_student.equal(choose_instances('student', teacher[:, :4], student, 5))
    assert not of_teacher.equal(of_student)
    joint = choose_instances('joint', teacher, student, 5, alpha=10.0)
    assert joint.equal(select_prototypes(teacher, student, 5))
    assert not joint.equal(of_teacher) and not joint.equal(of_student)


def test_search_in_one_space_is_matching_pursuit():
    """Against residuals that are written out."""
    teacher, student = features()
    chosen = choose_instances('teacher', teacher, student, 4, alpha=7.0, density_quantile=0.0,
                              bandwidth=100.0)
    atoms = torch.nn.functional.normalize(teacher.double(), dim=1)
    sparsest = torch.exp(-((1 - atoms @ atoms.T) / 100) ** 2).sum(1).argmin()
    residual = atoms
    for row in chosen:
        gain = (residual @ atoms.T).square().sum(0)
        gain[sparsest] = 0  # what is not above the threshold is no candidate
        assert gain.argmax() == row
        residual = residual - (residual @ atoms[row])[:, None] * atoms[row]


def test_kmeans_takes_one_instance_of_every_cluster():
    centres = torch.eye(6)[:4] * 5
    teacher = centres.repeat_interleave(10, dim=0) + 0.1 * features(40)[0][:, :6]
    rows = choose_instances('kmeans', teacher, teacher, 4, seed=1)
    assert sorted((rows // 10).tolist()) == [0, 1, 2, 3]


def test_unknown_selection_is_refused_by_its_setting():
    with pytest.raises(ConfigError, match="model.prototypes.selection = 'best': must be one of "
                                          'joint, random, kmeans'):
        PrototypeGenerationModule(selection='best')
