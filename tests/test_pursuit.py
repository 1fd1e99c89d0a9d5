"""select_prototypes against the original's choices, an explicit form, and its promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gkd.prototypes import select_prototypes

GOLDEN = np.load(Path(__file__).parent / 'data' / 'prototypes.npz')


def clustered(seed, count=120, teacher_dim=12, student_dim=9, clusters=6):
    """Features of instances that agree, up to noise, on their cluster in both spaces."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.randint(clusters, (count,), generator=generator)
    features = []
    for dim in (teacher_dim, student_dim):
        centres = torch.randn(clusters, dim, generator=generator)
        noise = torch.rand(count, 1, generator=generator)
        features.append(centres[cluster] + noise * torch.randn(count, dim, generator=generator))
    return features


def choose_explicitly(teacher, student, num_prototypes, alpha, bandwidth, density_quantile):
    """The definition word for word: reconstruct everything with every candidate."""
    spaces = [F.normalize(features.double(), dim=1) for features in (teacher, student)]
    count = len(teacher)
    dense = torch.ones(count, dtype=torch.bool)
    for features in spaces:
        density = torch.exp(-(((1 - features @ features.T) / bandwidth) ** 2)).sum(1)
        dense &= density > density.sort().values[int(density_quantile * count)]
    candidates = torch.where(dense)[0] if dense.any() else torch.arange(count)
    residuals, chosen = [features.clone() for features in spaces], []
    for _ in range(num_prototypes):
        inner_a, inner_b = (
            features[candidates] @ residual.T for features, residual in zip(spaces, residuals)
        )
        joint = alpha * (inner_a + inner_b)
        weight_a, weight_b = (
            (joint + inner_a) / (1 + 2 * alpha),
            (joint + inner_b) / (1 + 2 * alpha),
        )
        error = alpha * (weight_a - weight_b).square().sum(1)
        for features, residual, weight in zip(spaces, residuals, (weight_a, weight_b)):
            left = residual - weight[:, :, None] * features[candidates][:, None, :]
            error += left.square().sum((1, 2))
        best = error.argmin()
        chosen.append(candidates[best])
        residuals = [
            residual - torch.outer(weight[best], features[candidates[best]])
            for features, residual, weight in zip(spaces, residuals, (weight_a, weight_b))
        ]
    return torch.stack(chosen)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', range(3))
def test_chooses_what_the_original_chooses(case, dtype):
    chosen = select_prototypes(
        torch.from_numpy(GOLDEN[f'case{case}_teacher']).to(dtype),
        torch.from_numpy(GOLDEN[f'case{case}_student']).to(dtype),
        num_prototypes=int(GOLDEN[f'case{case}_num_prototypes']),
        alpha=float(GOLDEN[f'case{case}_alpha']),
    )
    assert chosen.dtype == torch.long
    assert chosen.tolist() == GOLDEN[f'case{case}_indices'].tolist()


@pytest.mark.parametrize('alpha', [0.0, 0.5, 10.0])
@pytest.mark.parametrize('bandwidth, density_quantile', [(0.1, 0.4), (0.5, 0.7), (0.3, 0.0)])
def test_agrees_with_the_explicit_form(alpha, bandwidth, density_quantile):
    for seed in range(4):
        teacher, student = clustered(seed)
        options = dict(alpha=alpha, bandwidth=bandwidth, density_quantile=density_quantile)
        expected = choose_explicitly(teacher, student, 7, **options)
        assert select_prototypes(teacher, student, 7, **options).tolist() == expected.tolist()


def test_the_choice_does_not_depend_on_the_chunks():
    teacher, student = clustered(0, count=301)
    # Twins have equal densities, so rounding alone could let one of them pass the filter.
    teacher, student = teacher.repeat(2, 1), student.repeat(2, 1)
    whole = select_prototypes(teacher, student, max_pairs=2**40)
    for max_pairs in (1, 602 * 7, 602 * 100):
        assert torch.equal(select_prototypes(teacher, student, max_pairs=max_pairs), whole)


def test_of_equal_instances_the_first_is_chosen():
    for seed in range(5):
        teacher, student = clustered(seed, count=203)
        once = select_prototypes(teacher, student, num_prototypes=5)
        twice = select_prototypes(teacher.repeat(3, 1), student.repeat(3, 1), num_prototypes=5)
        assert twice.tolist() == once.tolist()


def test_of_instances_that_explain_as_much_the_first_is_chosen():
    # A regular polygon's corners differ by rounding only, in density and in what they explain.
    for corners in (5, 7, 11, 30):
        angle = torch.arange(corners, dtype=torch.float64) * 2 * torch.pi / corners
        polygon = torch.stack([angle.cos(), angle.sin()], dim=1)
        assert select_prototypes(polygon, polygon.flip(1), num_prototypes=1).tolist() == [0]


def test_holds_no_more_pairs_than_allowed():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    count, dim, max_pairs = 1000, 4, 9500
    with Largest() as largest:
        select_prototypes(torch.randn(count, dim), torch.randn(count, dim), max_pairs=max_pairs)
    assert 2 * dim * count <= largest.numel <= max_pairs


def test_the_order_of_instances_does_not_matter():
    teacher, student = clustered(1)
    order = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(0))
    shuffled = select_prototypes(teacher[order], student[order])
    assert torch.equal(order[shuffled], select_prototypes(teacher, student))


def test_the_length_of_features_does_not_matter():
    teacher, student = clustered(2)
    scale = torch.rand(len(teacher), 1) * 1e3 + 1e-3
    assert torch.equal(
        select_prototypes(teacher * scale, student / scale), select_prototypes(teacher, student)
    )


def test_teacher_and_student_weigh_the_same():
    teacher, student = clustered(3)
    assert torch.equal(select_prototypes(teacher, student), select_prototypes(student, teacher))


def test_a_loner_in_either_space_is_no_candidate():
    # Row 3 lies apart from the rest in one space only, and would explain most of that space.
    crowd = torch.tensor([[1.0, 0.0, 0.0]]) + 0.01 * torch.eye(3)
    apart = torch.cat([crowd, torch.tensor([[0.0, 1.0, 0.0]])]).repeat_interleave(
        torch.tensor([5, 4, 3, 1]), dim=0
    )
    together = torch.cat([crowd, crowd[:1]]).repeat_interleave(torch.tensor([5, 4, 3, 1]), dim=0)
    for pair in ((apart, together), (together, apart)):
        assert 12 not in select_prototypes(*pair, density_quantile=0.0)
    assert 12 in select_prototypes(apart, apart[:, [1, 0, 2]], bandwidth=1e6)


def test_alike_instances_are_all_candidates():
    teacher = torch.eye(4).repeat(2, 1)
    assert sorted(select_prototypes(teacher, teacher, num_prototypes=4).tolist()) == [0, 1, 2, 3]


def test_more_prototypes_than_instances():
    assert select_prototypes(torch.rand(1, 3), torch.rand(1, 2), 4).tolist() == [0, 0, 0, 0]
    chosen = select_prototypes(torch.rand(3, 5), torch.rand(3, 5), num_prototypes=8)
    assert len(chosen) == 8 and set(chosen.tolist()) <= {0, 1, 2}


def test_zero_features_do_no_harm():
    teacher, student = clustered(4)
    teacher[7], student[7], student[8] = 0, 0, 0
    expected = choose_explicitly(teacher, student, 10, 10.0, 0.1, 0.4)
    assert torch.equal(select_prototypes(teacher, student), expected)
    assert select_prototypes(torch.zeros(3, 4), torch.zeros(3, 5), 2).tolist() == [0, 0]


def test_leaves_its_inputs_alone():
    def refuse(tensor):
        raise AssertionError('kept a tensor for a backward pass')

    teacher, student = (features.double().requires_grad_() for features in clustered(5))
    before = teacher.detach().clone(), student.detach().clone()
    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        select_prototypes(teacher, student)
    assert torch.equal(teacher, before[0]) and torch.equal(student, before[1])


@pytest.mark.parametrize(
    'teacher, student, message',
    [
        (torch.rand(0, 3), torch.rand(0, 3), '0 instances'),
        (torch.rand(4, 3), torch.rand(5, 3), '4 and 5 rows'),
        (torch.rand(4), torch.rand(4, 3), r'teacher features .* shape \(4,\)'),
        (
            torch.rand(4, 3),
            torch.ones(4, 3, dtype=torch.long),
            'student features .* got torch.int64',
        ),
        (torch.rand(2, 3), torch.tensor([[1.0], [float('nan')]]), 'student .* row 1'),
    ],
)
def test_refuses_features_that_cannot_be_right(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        select_prototypes(teacher, student)


@pytest.mark.parametrize(
    'name, value',
    [
        ('num_prototypes', 0),
        ('alpha', -1),
        ('bandwidth', 0.0),
        ('density_quantile', 1.0),
        ('max_pairs', 0),
    ],
)
def test_refuses_options_out_of_range(name, value):
    with pytest.raises(ValueError, match=f'{name}.*{value}'):
        select_prototypes(torch.rand(4, 3), torch.rand(4, 3), **{name: value})
