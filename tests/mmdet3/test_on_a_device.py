"""Generations and training steps on a device other than the CPU: nothing is mixed, few waits."""

import pytest
from helpers.on_a_device import DETECTORS, TAUGHT, in_new_process, waits_of
from helpers.pretended_device import can_be_pretended
from small_experiments import experiment

pytestmark = [can_be_pretended, pytest.mark.slow]


@pytest.fixture(scope='module', params=[(name, taught) for name in DETECTORS for taught in TAUGHT],
                ids=', '.join)
def waits(request, annotations, tmp_path_factory):
    """What :func:`waits_of` returns."""
    folder = tmp_path_factory.mktemp('bank')
    dataset = experiment(annotations, folder).val_dataloader.dataset.to_dict()
    return in_new_process(waits_of, *request.param, dataset, folder)


def test_a_generation_waits_once_a_batch_and_four_times_a_search(waits):
    generated, allowed, *_ = waits
    assert generated == allowed


def test_a_taught_step_waits_no_more_than_the_student_alone(waits):
    *_, alone, taught = waits
    assert alone and taught == alone
