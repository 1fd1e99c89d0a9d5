"""Which shapes' launches are recorded; recordings themselves need a GPU (`test_gpu.py`)."""

import torch

from gkd.detectors.cuda_graphs import RecordedLaunches


class OnGPU(torch.Tensor):
    """Images that claim to be on a GPU."""

    is_cuda = True


def double(images):
    return (images.as_subclass(torch.Tensor) * 2,)


class Pretended(RecordedLaunches):
    """Records without a GPU: a replay computes from the input buffer, as a CUDA graph does."""

    def __init__(self, most):
        super().__init__(double, most)
        self.replayed = []

    def record(self, images):
        inputs, maps = images.as_subclass(torch.Tensor).clone(), double(images)
        maps[0].zero_()  # a recording does not run what it records
        pretended = self

        class Graph:
            def replay(self):
                pretended.replayed.append(tuple(inputs.shape))
                maps[0].copy_(inputs * 2)

        return inputs, Graph(), maps


def images(side, kind=OnGPU):
    return torch.rand(2, 3, side, side).as_subclass(kind)


@torch.no_grad()
def test_first_shapes_that_occur_a_third_time_are_replayed_on_the_images_given():
    launches = Pretended(most=2)
    sides = [8, 16, 8, 24, 8, 24, 16, 32, 32, 32, 16, 8, 32]
    for side in sides:
        given = images(side)
        assert torch.equal(launches(given)[0], double(given)[0])
    # 8 occurs a third time as the fifth, then 32; no third shape is recorded
    assert [shape[-1] for shape in launches.replayed] == [8, 32, 8, 32]
    assert [shape[-1] for shape in launches.recorded] == [8, 32]


def test_nothing_is_recorded_on_the_cpu_or_with_gradients():
    launches = Pretended(most=2)
    for _ in range(4):
        launches(images(8))  # with gradients
    with torch.no_grad():
        for _ in range(4):
            launches(images(8, torch.Tensor))
    assert not launches.recorded and not launches.replayed
