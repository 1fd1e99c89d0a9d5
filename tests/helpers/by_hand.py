"""Formulas in explicit loops, and numbers to try them on."""

import math

import torch


def random(*shape, seed=0):
    """Normal random numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values, temperature):
    """Softmax of a list of numbers."""
    largest = max(values)
    exponentials = [math.exp((value - largest) / temperature) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def iou(a, b, offset=0):
    """Overlap of two boxes; ``offset`` 1 counts the last pixel in."""
    inter = (max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
             * max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0))
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return inter / (sum(areas) - inter)


def convolve(feature, layer):
    """A convolution, cell by cell, with zeros around the map."""
    images, _, height, width = feature.shape
    reach = layer.kernel_size[0] // 2
    out = feature.new_zeros(images, layer.out_channels, height, width)
    for image in range(images):
        for y in range(height):
            for x in range(width):
                value = layer.bias.clone() if layer.bias is not None else 0
                for dy in range(-reach, reach + 1):
                    for dx in range(-reach, reach + 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            value = value + (layer.weight[:, :, dy + reach, dx + reach]
                                             @ feature[image, :, y + dy, x + dx])
                out[image, :, y, x] = value
    return out


def random_boxes(count):
    """Boxes that overlap each other a little to nearly completely."""
    corner = torch.rand(count, 2) * 30
    return torch.cat([corner, corner + 20 + torch.rand(count, 2) * 10], dim=1)
