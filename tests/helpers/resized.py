"""Steps of a student that resizes its batches itself."""

import random

import pytest

from studies import coverage


def assert_teacher_sees_the_resized(model, batch):
    """Both detectors and the boxes have the size that the student drew for a step."""
    sizes = set()
    random.seed(0)  # YOLOX draws its sizes with it
    for _ in range(4):
        step = coverage.observed(model, batch)
        size = tuple(step.images.shape[-2:])
        sizes.add(size)
        assert size == step.image_sizes[0]
        for own, target in zip(step.student.maps, step.teacher.maps):
            assert own.shape[-2:] == target.shape[-2:]
        # Boxes are of the resized images.
        assert step.gt_boxes[0][1, 2].item() == pytest.approx(0.95 * size[1])
    assert len(sizes) > 1
