"""Whatever shapes, types and boxes come: results are finite and in range, or an error says why."""

import sys

import pytest
import torch
from helpers.running import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd.knowledge import instances, losses, similarities
from gkd.prototypes import PrototypeBank, select_prototypes

sys.path.append(str(REPOSITORY / 'tests' / 'faults'))

import fuzz  # noqa: E402

quick = settings(max_examples=40, deadline=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture,
                                        HealthCheck.too_slow])
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
counts = st.integers(0, 6)
seeds = st.integers(0, 2 ** 20)


def tensor(seed, *shape, dtype=torch.float32, gradient=False):
    """Random numbers of very different sizes; some rows are zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    if shape and shape[0]:
        scales = torch.randint(-3, 4, shape[:1], generator=generator)
        values = values * (10.0 ** scales * (scales > -3)).reshape(-1, *[1] * (len(shape) - 1))
    return values.to(dtype).requires_grad_(gradient)


@st.composite
def box_sets(draw, images=None):
    """Boxes of some images: inside, across, outside, thin, empty, turned inside out."""
    images = draw(st.integers(1, 3)) if images is None else images
    edge = st.one_of(st.floats(-300, 500, width=32), st.sampled_from([0.0, 64.0, 1e6, -1e6]))
    return [torch.tensor(draw(st.lists(st.tuples(edge, edge, edge, edge), max_size=5)),
                         dtype=torch.float32).reshape(-1, 4) for _ in range(images)]


@quick
@given(box_sets(), dtypes, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), seeds)
def test_pooling(boxes, dtype, height, width, channels, seed):
    feature = tensor(seed, len(boxes), channels, height, width, dtype=dtype, gradient=True)
    pooled = instances.pool_instances(feature, boxes, 1 / 16)
    assert pooled.shape == (sum(map(len, boxes)), channels)
    assert pooled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    low, high = feature.detach().min(), feature.detach().max()
    slack = 1e-3 * max(abs(low), abs(high)) + 1e-6
    assert ((pooled >= low - slack) & (pooled <= high + slack)).all()
    pooled.sum().backward()
    assert feature.grad.isfinite().all()


@quick
@given(box_sets(), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9),
       st.sampled_from([4, 8, 16, 32, 128]), seeds)
def test_masks(boxes, num_levels, height, width, stride, seed):
    weights = [tensor(seed, len(image)).abs() for image in boxes]
    levels = instances.map_levels(torch.cat(boxes), num_levels)
    assert ((levels >= 0) & (levels < num_levels)).all()
    for level in range(num_levels):
        mask = instances.instance_mask(boxes, weights, level, num_levels, stride, (height, width))
        assert mask.shape == (len(boxes), height, width)
        for image, own in zip(mask, weights):
            assert torch.isin(image, torch.cat([own, own.new_zeros(1)])).all()


@quick
@given(counts, st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(0, 3), min_size=1,
                                                              max_size=5), dtypes, seeds)
def test_weights_and_global_knowledge(n, d_student, d_teacher, sizes, dtype, seed):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    total = sum(sizes)
    student = tensor(seed, n, d_student, dtype=dtype, gradient=True)
    teacher = tensor(seed + 1, n, d_teacher, dtype=dtype)
    # Half precision may meet full precision.
    wide = torch.promote_types(dtype, torch.float32)
    prototypes = (tensor(seed + 2, total, d_student, dtype=wide),
                  tensor(seed + 3, total, d_teacher, dtype=wide))
    labels = torch.randint(len(sizes), (n,), generator=torch.Generator().manual_seed(seed))
    weights = similarities.robust_weights(student, teacher, *prototypes, labels, offsets)
    assert weights.shape == (n,) and not weights.requires_grad
    assert ((weights >= 0) & (weights <= 1)).all()
    loss = losses.global_knowledge_loss(student, teacher, *prototypes, weights)
    assert 0 <= loss <= 2
    loss.backward()
    assert student.grad.isfinite().all()


@quick
@given(counts, st.integers(1, 6), st.sampled_from(['softmax', 'sigmoid']), dtypes,
       st.sampled_from([0.5, 2.0, 10.0]), seeds)
def test_soft_labels(n, classes, activation, dtype, temperature, seed):
    student = tensor(seed, n, classes, dtype=dtype, gradient=True)
    teacher = tensor(seed + 1, n, classes, dtype=dtype)
    loss = losses.soft_label_loss(student, teacher, torch.rand(n), temperature, activation)
    assert loss.isfinite() and loss >= -1e-4
    loss.backward()
    assert student.grad.isfinite().all()


@quick
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), dtypes,
       st.floats(0, 1), seeds)
def test_local_knowledge(images, channels, height, width, dtype, covered, seed):
    student = tensor(seed, images, channels, height, width, dtype=dtype, gradient=True)
    teacher = tensor(seed + 1, images, channels, height, width, dtype=dtype)
    mask = tensor(seed + 2, images, height, width).abs().clamp(max=1)
    mask = mask * (torch.rand(mask.shape) < covered)
    inside, outside = losses.local_knowledge_loss(student, teacher, mask)
    assert inside.isfinite() and outside.isfinite() and inside >= 0 and outside >= 0
    (inside + outside).backward()
    assert student.grad.isfinite().all()


@quick
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), dtypes, seeds,
       st.booleans())
def test_prototypes(n, d_teacher, d_student, number, dtype, seed, same):
    teacher = tensor(seed, n, d_teacher, dtype=dtype)
    student = tensor(seed + 1, n, d_student, dtype=dtype)
    if same:
        teacher, student = teacher[:1].expand(n, -1), student[:1].expand(n, -1)
    chosen = select_prototypes(teacher, student, number)
    assert chosen.shape == (number,) and ((chosen >= 0) & (chosen < n)).all()
    assert torch.equal(chosen, select_prototypes(teacher, student, number, max_pairs=3))
    broken = teacher.clone()
    broken[n // 2, 0] = float('nan')
    with pytest.raises(ValueError, match=f'row {n // 2}'):
        select_prototypes(broken, student, number)


@pytest.mark.slow
@quick
@given(st.integers(1, 4), st.lists(counts, min_size=1, max_size=4), st.integers(1, 5),
       st.integers(1, 5), dtypes, seeds, st.dictionaries(
           st.text(max_size=5).filter(lambda key: key not in ('format', 'format_version',
                                                              'sha256')),
           st.text(max_size=9), max_size=3))
def test_banks_come_back_from_their_files(tmp_path, levels, sizes, d_student, d_teacher, dtype,
                                          seed, metadata):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    bank = PrototypeBank([tensor(seed, sum(sizes), d_student, dtype=dtype)] * levels,
                         [tensor(seed + 1, sum(sizes), d_teacher, dtype=dtype)] * levels,
                         [offsets] * levels, metadata)
    bank.save(tmp_path / 'bank')
    found = PrototypeBank.load(tmp_path / 'bank')
    for name in ('student', 'teacher', 'offsets'):
        for one, other in zip(getattr(bank, name), getattr(found, name)):
            assert one.dtype == other.dtype and torch.equal(one, other)
    assert found.metadata == metadata


@pytest.mark.slow
def test_damaged_configs_and_annotations_end_with_a_message(tmp_path):
    counts, complaints = fuzz.run(tmp_path / 'inputs', 12, seed=1)
    assert complaints == [] and sum(counts.values()) == 12 and len(counts) > 2, counts
