"""Generations and training steps on a device other than the CPU: nothing is mixed, few waits."""

import pytest
from helpers import tiny_data
from helpers.on_a_device import DETECTORS, TAUGHT, in_new_process, mixed, waits_of
from helpers.pretended_device import can_be_pretended

pytestmark = [can_be_pretended, pytest.mark.slow]


@pytest.fixture(scope='module', params=[(name, taught) for name in DETECTORS for taught in TAUGHT],
                ids=', '.join)
def waits(request, tmp_path_factory):
    """What :func:`waits_of` returns."""
    folder = tmp_path_factory.mktemp('data')
    annotations = tiny_data.write_data(folder, sizes=tiny_data.SIZES * 2)
    dataset = tiny_data.dataset(annotations, tiny_data.pipelines()[1])
    return in_new_process(waits_of, *request.param, dataset, folder)


def test_a_generation_waits_once_a_batch_and_four_times_a_search(waits):
    generated, allowed, *_ = waits
    assert generated == allowed


def test_a_taught_step_waits_no_more_than_the_student_alone(waits):
    *_, alone, taught = waits
    assert alone and taught == alone


def test_the_proof_notices():
    message, (wait,) = in_new_process(mixed)
    assert 'aten::add mixes devices' in message and 'on_a_device.py' in wait
