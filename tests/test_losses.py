"""Robust weights and the three losses against the original's values, loops and their promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.devices import fake_gpu
from torch._subclasses.fake_tensor import FakeTensorMode

from gkd.knowledge import (
    global_knowledge_loss,
    instance_mask,
    local_knowledge_loss,
    map_levels,
    pool_instances,
    robust_weights,
    soft_label_loss,
)
from gkd.knowledge.losses import local_knowledge_losses, similarity_loss
from gkd.knowledge.similarities import Basis

DATA = Path(__file__).parent / 'data'


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def instances(count=6, dtype=torch.float32):
    """Features of student and teacher, prototypes of three classes (class 1 has none), labels."""
    features = random(count, 4, dtype=dtype), random(count, 5, seed=1, dtype=dtype)
    prototypes = random(7, 4, seed=2, dtype=dtype), random(7, 5, seed=3, dtype=dtype)
    labels = torch.arange(count) % 3
    return (*features, *prototypes, labels, torch.tensor([0, 3, 3, 7]))


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-12)


class Golden:
    """One golden file, and the method's steps up to the losses."""

    def __init__(self, name):
        arrays = np.load(DATA / f'{name}.npz')
        self.arrays = {key: torch.from_numpy(value) for key, value in arrays.items()}
        self.strides = self['strides'].tolist()
        self.levels = range(len(self.strides))
        self.boxes = [self['boxes0'], self['boxes1']]
        self.labels = torch.cat([self['labels0'], self['labels1']])
        self.decay = 1 - int(self['epoch']) / int(self['max_epochs'])

    def __getitem__(self, key):
        return self.arrays[key]

    def basis(self, level):
        return self[f'student_prototypes{level}'], self[f'teacher_prototypes{level}']

    def pooled(self, level):
        return tuple(
            pool_instances(self[f'{who}_feat{level}'], self.boxes, 1 / self.strides[level])
            for who in ('student', 'teacher')
        )

    def weights(self, level, features):
        offsets = self[f'class_offsets{level}']
        return robust_weights(*features, *self.basis(level), self.labels, offsets)


@pytest.fixture(params=['two_stage', 'one_stage'])
def golden(request):
    return Golden(request.param)


class TestOriginal:
    def test_robust_weights(self, golden):
        for level in golden.levels:
            weights = golden.weights(level, golden.pooled(level))
            close(weights, golden[f'robust_weights{level}'])

    def test_global_knowledge(self, golden):
        losses = []
        for level in golden.levels:
            pooled = golden.pooled(level)
            loss = global_knowledge_loss(
                *pooled, *golden.basis(level), golden.weights(level, pooled)
            )
            losses.append(5 * golden.decay * loss)
        close(torch.stack(losses), golden['loss_global'])

    def test_local_knowledge(self, golden):
        counts = [len(boxes) for boxes in golden.boxes]
        losses = []
        for level in golden.levels:
            weights = golden.weights(level, golden.pooled(level)).split(counts)
            student, teacher = golden[f'student_adapted{level}'], golden[f'teacher_feat{level}']
            mask = instance_mask(
                golden.boxes,
                weights,
                level,
                len(golden.levels),
                golden.strides[level],
                student.shape[2:],
            )
            losses.append(torch.stack(local_knowledge_loss(student, teacher, mask)))
        foreground, background = golden.decay * torch.stack(losses, dim=1)
        if golden['loss_local_fg'].dim() == 0:
            foreground, background = foreground.mean(), background.mean()
        close(foreground, golden['loss_local_fg'])
        close(4 * background, golden['loss_local_bg'])

    def test_soft_labels(self, golden):
        if 'roi_levels' in golden.arrays:
            levels = golden['roi_levels']
            roi = [golden[f'{who}_roi_feats'].mean((2, 3)) for who in ('student', 'teacher')]
            weights = torch.stack([golden.weights(level, roi) for level in golden.levels])
        else:
            levels = map_levels(torch.cat(golden.boxes), len(golden.levels))
            weights = torch.stack([golden[f'robust_weights{level}'] for level in golden.levels])
        own = weights.gather(0, levels[None])[0]
        loss = soft_label_loss(golden['student_logits'], golden['teacher_logits'], own)
        close(loss, golden['loss_soft'])


class TestRobustWeights:
    def test_compares_the_best_prototypes_of_the_own_class(self):
        student, teacher, student_prototypes, teacher_prototypes, labels, offsets = instances()
        expected = []
        for i, label in enumerate(labels):
            own = slice(offsets[label], offsets[label + 1])
            best = [
                max([F.cosine_similarity(f[i], p, dim=0) for p in prototypes[own]], default=None)
                for f, prototypes in ((student, student_prototypes), (teacher, teacher_prototypes))
            ]
            expected.append(1.0 if None in best else max(0.0, 1 - float(abs(best[0] - best[1]))))
        weights = robust_weights(
            student, teacher, student_prototypes, teacher_prototypes, labels, offsets
        )
        close(weights, torch.tensor(expected))
        assert expected[1] == expected[4] == 1.0 and min(expected) < 0.9

    def test_is_0_at_least(self):
        up = torch.tensor([[1.0, 0.0]])
        weights = robust_weights(up, -up, up, up, torch.tensor([0]), torch.tensor([0, 1]))
        assert weights.tolist() == [0.0]

    def test_is_1_where_there_is_nothing_to_judge_by(self):
        student, teacher, *prototypes, labels, offsets = instances()
        outside = robust_weights(student, teacher, *prototypes, labels * 0 + 3, offsets)
        assert outside.tolist() == [1.0] * 6
        no_prototypes = [prototype[:0] for prototype in prototypes]
        nothing = robust_weights(student, teacher, *no_prototypes, labels, offsets * 0)
        assert nothing.tolist() == [1.0] * 6

    def test_every_level_has_classes_of_its_own(self):
        prototypes = [random(3, 4), random(3, 4, seed=1)]
        [basis] = Basis.of(prototypes, prototypes, torch.tensor([[0, 1, 3], [0, 2, 3]]))
        assert basis.classes.tolist() == [[[0, 1, 1]], [[0, 0, 1]]]

    def test_takes_no_instances(self):
        student, teacher, *rest, labels, offsets = instances()
        assert robust_weights(student[:0], teacher[:0], *rest, labels[:0], offsets).shape == (0,)

    def test_has_no_gradient(self):
        student, *rest = instances()
        assert not robust_weights(student.requires_grad_(), *rest).requires_grad

    def test_follows_the_instances_and_ignores_their_length(self):
        student, teacher, *prototypes, labels, offsets = instances()
        weights = robust_weights(student, teacher, *prototypes, labels, offsets)
        order = torch.tensor([3, 5, 0, 1, 4, 2])
        scale = torch.rand(6, 1) + 0.1
        scaled = robust_weights(
            (student * scale)[order],
            teacher[order] / 7,
            prototypes[0] * 9,
            prototypes[1],
            labels[order],
            offsets,
        )
        close(scaled, weights[order])


class TestGlobalKnowledge:
    def test_is_smooth_l1_of_weighted_similarities(self):
        student, teacher, student_prototypes, teacher_prototypes, *_ = instances()
        weights = torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9, 1.0])
        teacher[2], student[2] = teacher_prototypes[0], -student_prototypes[0]  # beyond beta
        terms = []
        for i in range(6):
            for k in range(7):
                difference = (
                    weights[i]
                    * (
                        F.cosine_similarity(student[i], student_prototypes[k], dim=0)
                        - F.cosine_similarity(teacher[i], teacher_prototypes[k], dim=0)
                    ).abs()
                )
                terms.append(difference - 0.5 if difference > 1 else difference**2 / 2)
        loss = global_knowledge_loss(
            student, teacher, student_prototypes, teacher_prototypes, weights
        )
        close(loss, torch.stack(terms).mean())
        assert max(terms) > 1

    def test_levels_are_summed(self):
        levels = [(*instances()[:4], torch.rand(6)) for _ in range(3)]
        student, teacher = (
            torch.stack([
                F.normalize(level[role], dim=1) @ F.normalize(level[role + 2], dim=1).T
                for level in levels
            ])
            for role in (0, 1)
        )
        weights = torch.stack([level[4] for level in levels])
        loss = similarity_loss(student, teacher, weights, factor=2.0)
        close(loss, 2 * sum(global_knowledge_loss(*level) for level in levels))

    def test_only_the_student_learns(self):
        arguments = [x.requires_grad_() for x in (*instances()[:4], torch.rand(6))]
        global_knowledge_loss(*arguments).backward()
        assert arguments[0].grad.abs().sum() > 0
        assert [argument.grad for argument in arguments[1:]] == [None] * 4

    def test_a_teacher_that_asks_for_gradients_learns_nothing(self):
        student, teacher = random(3, 4, 5).requires_grad_(), random(3, 4, 5).requires_grad_()
        (similarity_loss(student, 2 * teacher, torch.ones(3, 4))).backward()
        assert student.grad.any() and teacher.grad is None

    def test_gradient(self):
        student, *rest = instances(dtype=torch.float64)[:4]
        weights = torch.rand(6, dtype=torch.float64)
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x: global_knowledge_loss(x, *rest, weights), student
        )

    def test_the_length_of_features_does_not_matter(self):
        student, teacher, *prototypes = instances()[:4]
        weights = torch.rand(6)
        loss = global_knowledge_loss(student, teacher, *prototypes, weights)
        scaled = global_knowledge_loss(
            student * 5, teacher / 3, prototypes[0] * 2, prototypes[1] / 9, weights
        )
        close(scaled, loss)

    @pytest.mark.parametrize('count, prototypes', [(0, 7), (6, 0), (0, 0)])
    def test_nothing_to_compare_is_0_with_a_gradient(self, count, prototypes):
        student, teacher, student_prototypes, teacher_prototypes, *_ = instances()
        student = student[:count].requires_grad_()
        loss = global_knowledge_loss(
            student,
            teacher[:count],
            student_prototypes[:prototypes],
            teacher_prototypes[:prototypes],
            torch.ones(count),
        )
        loss.backward()
        assert loss.item() == 0 and torch.equal(student.grad, torch.zeros_like(student))

    def test_a_zero_feature_is_similar_to_nothing_and_gets_no_gradient(self):
        student, teacher, *prototypes = instances()[:4]
        student[0] = 0
        student.requires_grad_()
        loss = global_knowledge_loss(student[:1], teacher[:1], *prototypes, torch.ones(1))
        loss.backward()
        assert torch.equal(student.grad, torch.zeros_like(student))
        target = F.cosine_similarity(teacher[:1], prototypes[1])
        close(loss, target.square().mean() / 2)


class TestLocalKnowledge:
    def test_divides_each_part_by_its_own_weight(self):
        student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
        mask = random(2, 4, 5, seed=2).clamp(0, 1)
        foreground, background = local_knowledge_loss(student, teacher, mask)
        spread = mask[:, None].expand_as(student)
        squared = (student - teacher) ** 2
        close(foreground, (squared * spread).sum() / (2 * spread.sum()))
        close(background, squared[spread == 0].sum() / (2 * (spread == 0).sum()))

    def test_divides_by_1_at_least(self):
        student, teacher = torch.full((1, 2, 1, 2), 3.0), torch.zeros(1, 2, 1, 2)
        foreground, background = local_knowledge_loss(
            student, teacher, torch.tensor([[[0.1, 1e-9]]])
        )
        close(foreground, torch.tensor(2 * 9 * (0.1 + 1e-9)))  # 2 * C * sum is 0.4
        assert background.item() == 0
        assert local_knowledge_loss(student, teacher, torch.zeros(1, 1, 2))[0].item() == 0

    def test_only_the_student_learns(self):
        student, teacher = random(1, 2, 3, 3).requires_grad_(), random(1, 2, 3, 3, seed=1)
        mask = torch.rand(1, 3, 3).requires_grad_()
        sum(local_knowledge_loss(student, teacher.requires_grad_(), mask)).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None and mask.grad is None

    def test_gradient(self):
        student = random(2, 2, 3, 3, dtype=torch.float64).requires_grad_()
        teacher, mask = (
            random(2, 2, 3, 3, dtype=torch.float64, seed=1),
            torch.eye(3).expand(2, 3, 3),
        )
        assert torch.autograd.gradcheck(lambda x: local_knowledge_loss(x, teacher, mask), student)


class TestSoftLabels:
    def test_softmax_is_the_divergence_of_softened_probabilities(self):
        student, teacher, weights = random(5, 4), random(5, 4, seed=1), torch.rand(5)
        target, prediction = (teacher / 3).softmax(1), (student / 3).softmax(1)
        terms = (target * (target / prediction).log()).sum(1) / 4
        loss = soft_label_loss(student, teacher, weights, temperature=3.0)
        close(loss, (weights * terms).mean() * 9)

    def test_sigmoid_is_the_divergence_of_each_class(self):
        student, teacher, weights = random(5, 4), random(5, 4, seed=1), torch.rand(5)
        target, prediction = (teacher / 2).sigmoid(), (student / 2).sigmoid()
        terms = target * (target / prediction).log()
        terms = terms + (1 - target) * ((1 - target) / (1 - prediction)).log()
        loss = soft_label_loss(student, teacher, weights, activation='sigmoid')
        close(loss, (weights * terms.mean(1)).mean() * 4)

    def test_sigmoid_teaches_a_single_class_where_softmax_is_silent(self):
        student, teacher, weights = random(5, 1), random(5, 1, seed=1), torch.ones(5)
        assert soft_label_loss(student, teacher, weights).item() == 0
        assert soft_label_loss(student, teacher, weights, activation='sigmoid').item() > 0.01

    @pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
    def test_is_finite_for_extreme_logits(self, activation):
        student = torch.tensor([[500.0, -500.0]], requires_grad=True)
        loss = soft_label_loss(student, -student.detach(), torch.ones(1), activation=activation)
        loss.backward()
        assert loss.item() > 100 and student.grad.isfinite().all() and student.grad.abs().sum() > 0

    @pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
    def test_only_the_student_learns(self, activation):
        arguments = [
            x.requires_grad_() for x in (random(5, 4), random(5, 4, seed=1), torch.rand(5))
        ]
        soft_label_loss(*arguments, activation=activation).backward()
        assert arguments[0].grad.abs().sum() > 0
        assert arguments[1].grad is None and arguments[2].grad is None

    @pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
    def test_gradient(self, activation):
        student = random(5, 4, dtype=torch.float64).requires_grad_()
        teacher, weights = random(5, 4, dtype=torch.float64, seed=1), torch.rand(5).double()
        assert torch.autograd.gradcheck(
            lambda x: soft_label_loss(x, teacher, weights, 1.5, activation), student
        )

    @pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
    def test_is_0_for_a_student_like_the_teacher(self, activation):
        logits = random(5, 4)
        loss = soft_label_loss(logits, logits.clone(), torch.ones(5), activation=activation)
        assert abs(loss.item()) < 1e-7

    def test_no_instance_is_0_with_a_gradient(self):
        student = torch.rand(0, 4, requires_grad=True)
        loss = soft_label_loss(student, torch.rand(0, 4), torch.rand(0))
        loss.backward()
        assert loss.item() == 0 and student.grad is not None

    def test_refuses_another_activation(self):
        with pytest.raises(ValueError, match="'relu'"):
            soft_label_loss(random(5, 4), random(5, 4), torch.ones(5), activation='relu')


def step(feature, adapted, teacher, boxes, labels, basis, offsets, logits):
    """All knowledge of one level, from maps to losses."""
    student_features = pool_instances(feature, boxes, 1 / 8)
    teacher_features = pool_instances(teacher, boxes, 1 / 8)
    weights = robust_weights(student_features, teacher_features, *basis, labels, offsets)
    mask = instance_mask(boxes, weights.split([3, 0]), 0, 5, 8, feature.shape[2:])
    return [
        weights,
        global_knowledge_loss(student_features, teacher_features, *basis, weights),
        *local_knowledge_loss(adapted, teacher, mask),
        soft_label_loss(*logits, weights),
        soft_label_loss(*logits, weights, activation='sigmoid'),
    ]


def step_inputs(device='cpu', dtype=torch.float32):
    return dict(
        feature=torch.rand(2, 4, 6, 7, device=device, dtype=dtype).requires_grad_(),
        adapted=torch.rand(2, 5, 6, 7, device=device, dtype=dtype).requires_grad_(),
        teacher=torch.rand(2, 5, 6, 7, device=device, dtype=dtype),
        boxes=[torch.rand(3, 4, device=device) * 40, torch.rand(0, 4, device=device)],
        labels=torch.arange(3, device=device),
        basis=[torch.rand(6, dim, device=device) for dim in (4, 5)],
        offsets=torch.tensor([0, 2, 2, 6], device=device),
        logits=[torch.rand(3, 4, device=device, dtype=dtype).requires_grad_() for _ in range(2)],
    )


# 'cuda' makes fake tensors of a GPU, on any machine: a step by way of the CPU would mix devices.
@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=fake_gpu)])
def test_a_training_step_never_waits_for_the_device(device):
    with FakeTensorMode():
        inputs = step_inputs(device)
        results = step(**inputs)
        assert {result.device.type for result in results} == {device}
        if device == 'cpu' or torch.cuda.is_available():
            sum(results[1:]).backward()
            assert inputs['feature'].grad.shape == (2, 4, 6, 7)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    torch.manual_seed(0)
    inputs = step_inputs(dtype=dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        results = step(**inputs)
    wide = {
        name: value.float() if isinstance(value, torch.Tensor) and value.dtype == dtype else value
        for name, value in inputs.items()
    }
    wide['logits'] = [logits.float() for logits in inputs['logits']]
    for result, expected in zip(results, step(**wide)):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_local_knowledge_keeps_differences_in_the_students_precision(dtype):
    torch.manual_seed(0)
    teacher = [torch.randn(2, 8, side, side) for side in (12, 6)]
    student = [(level + torch.randn_like(level)).to(dtype).requires_grad_() for level in teacher]
    masks = [(torch.rand(2, side, side) - 0.5).clamp(min=0) for side in (12, 6)]
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = local_knowledge_losses(student, teacher, masks)
    assert {tensor.dtype for tensor in kept if tensor.numel() >= teacher[0].numel()} == {dtype}
    wide = [level.detach().double().requires_grad_() for level in student]
    expected = local_knowledge_losses(wide, [level.double() for level in teacher],
                                      [mask.double() for mask in masks])
    # A difference is rounded off once, and its error is not that of the others.
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(losses.double(), expected, rtol=rounding / 4, atol=0)
    for ours, theirs in zip(torch.autograd.grad(losses.sum(), student),
                            torch.autograd.grad(expected.sum(), wide)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=2 * rounding, atol=1e-7)


def test_a_level_in_half_precision_does_not_coarsen_the_others():
    torch.manual_seed(0)
    teacher = [torch.randn(2, 8, side, side) for side in (12, 6)]
    student = [torch.randn_like(teacher[0]).bfloat16().requires_grad_(),
               torch.randn_like(teacher[1]).requires_grad_()]
    masks = [(torch.rand(2, side, side) - 0.5).clamp(min=0) for side in (12, 6)]
    together = local_knowledge_losses(student, teacher, masks)
    alone = local_knowledge_losses(student[1:], teacher[1:], masks[1:])
    torch.testing.assert_close(together[1:], alone)
    torch.testing.assert_close(*(torch.autograd.grad(losses.sum(), student[1])
                                 for losses in (together, alone)))
