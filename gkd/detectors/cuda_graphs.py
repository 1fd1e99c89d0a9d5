"""Launches of a network on a GPU, recorded as CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


class RecordedLaunches:
    """A function of images whose launches on a GPU are recorded for the shapes that occur often.

    For a small batch, the host needs more time to launch a deep network's kernels than the GPU
    needs to run them. A recording (CUDA graph) is launched at once. It costs memory for the
    network's maps, which it does not share with other tensors.

    Args:
        function: Takes images, returns maps; without gradient.
        most: Number of shapes that are recorded: the first ones that occur a third time.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], most: int):
        self.function = function
        self.most = most
        self.seen: Counter = Counter()
        self.recorded: dict[torch.Size, tuple] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps; the next call overwrites them."""
        if not images.is_cuda or torch.is_grad_enabled():
            return self.function(images)
        if images.shape not in self.recorded:
            self.seen[images.shape] += 1
            if self.seen[images.shape] < 3 or len(self.recorded) == self.most:
                return self.function(images)
            self.recorded[images.shape] = self.record(images)
        inputs, graph, maps = self.recorded[images.shape]
        inputs.copy_(images)
        graph.replay()
        return maps

    def record(self, images: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        """The input buffer for images, the recording, and the buffers that then hold the maps."""
        inputs, graph = images.clone(), torch.cuda.CUDAGraph()
        # Recordings never run at the same time, so they may share memory.
        others = [graph for _, graph, _ in self.recorded.values()]
        # Other threads, which load data or wait for other processes, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=others[0].pool() if others else None,
                              capture_error_mode='thread_local'):
            maps = self.function(inputs)
        return inputs, graph, maps
