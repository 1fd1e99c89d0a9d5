"""Wall time of the prototype generation's pass over the images against pure inference.

Pure inference loads the same images in the same batches and runs the detector's backbone and neck,
nothing else; the pass also pools every instance on every level. Besides, what a whole generation
takes in the first epoch (teacher, student, search) and in later ones (student, search).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import inputs
import measure
import mmcv
import numpy as np
import torch
from mmdet.datasets import CocoDataset, CustomDataset, build_dataset
from mmdet.models import build_detector
from torch import nn

from gkd.prototypes import PrototypeGenerationModule
from gkd.prototypes.features import group_by_size, load_batches
from gkd.running.data import prototype_datasets


class Generation:
    """The generation's module with detectors and data sets.

    Args:
        model: Config of a distiller.
        datasets: Data sets with the test pipeline.
    """

    def __init__(self, model: dict, datasets: Sequence[CustomDataset]):
        torch.manual_seed(0)
        distiller = build_detector(model)
        distiller.init_weights()
        distiller.to(measure.device())
        self.datasets = datasets
        self.teacher, self.student = distiller.teacher, distiller.student.eval()
        self.pair = distiller.pair
        self.module: PrototypeGenerationModule = distiller.prototypes
        self.module.candidates = self.module.choose(datasets)
        self.batches = group_by_size(self.module.candidates, self.module.batch_size)

    def instance_pass(self) -> None:
        """The pass as the generation makes it, with the student."""
        self.module.run(self.student, self.pair.levels(self.pair.student), self.batches, 'student')

    @torch.no_grad()
    def inference(self) -> None:
        """Load the same batches and run the student's backbone and neck."""
        workers = self.module.workers or 0
        for stacks in load_batches(self.module.candidates, self.batches, workers):
            for stack in stacks:
                self.student.extract_feat(stack.images.to(measure.device()))

    def stages(self) -> dict[str, float]:
        """Seconds of the first generation and of the second, which has the teacher's features."""
        self.module.candidates = None
        seconds = {}
        with tempfile.TemporaryDirectory() as cache_dir:
            for name in ('first', 'later'):
                started = time.perf_counter()
                self.module.generate(
                    self.teacher, self.student, self.pair.levels(self.pair.teacher),
                    self.pair.levels(self.pair.student), self.datasets, cache_dir)
                seconds[name] = time.perf_counter() - started
        return seconds


@contextmanager
def quickstart() -> Iterator[Generation]:
    """The quickstart's RetinaNets on its training tiles."""
    config = inputs.quickstart_config('retinanet')
    yield Generation(config.model, [build_dataset(entry) for entry in prototype_datasets(config)])


@contextmanager
def coco(images: int = 6) -> Iterator[Generation]:
    """Faster R-CNN R101 and R50 on random images of COCO's usual size, with its test pipeline."""
    model = inputs.coco_model('faster_rcnn', batch_size=2)
    with tempfile.TemporaryDirectory() as folder:
        annotations = write_random_coco(Path(folder), images)
        yield Generation(model, [build_dataset(dict(
            type='CocoDataset', ann_file=str(annotations), img_prefix=folder,
            pipeline=test_pipeline()))])


def write_random_coco(folder: Path, images: int, size: tuple[int, int] = (480, 640)) -> Path:
    """Write JPEG images and COCO annotations with 7 boxes each; returns the annotation file."""
    random = np.random.default_rng(0)
    names = CocoDataset.CLASSES
    content = dict(images=[], annotations=[], categories=[
        dict(id=number, name=name) for number, name in enumerate(names)])
    for image in range(images):
        pixels = cv2.resize(random.integers(0, 256, (30, 40, 3), np.uint8), size[::-1])
        cv2.imwrite(str(folder / f'{image}.jpg'), pixels)
        content['images'].append(dict(id=image, file_name=f'{image}.jpg', height=size[0],
                                      width=size[1]))
        boxes = inputs.random_boxes(7, size, torch.Generator().manual_seed(image))
        for x1, y1, x2, y2 in boxes.tolist():
            content['annotations'].append(dict(
                id=len(content['annotations']), image_id=image, iscrowd=0,
                category_id=int(random.integers(len(names))), bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1)))
    path = folder / 'annotations.json'
    mmcv.dump(content, str(path))
    return path


def test_pipeline() -> list[dict]:
    """COCO's test pipeline as MMDetection's configs have it."""
    normalize = dict(type='Normalize', mean=[123.675, 116.28, 103.53],
                     std=[58.395, 57.12, 57.375], to_rgb=True)
    return [dict(type='LoadImageFromFile'),
            dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
                dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), normalize,
                dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img']),
                dict(type='Collect', keys=['img'])])]


SETTINGS = dict(quickstart=quickstart, coco=coco)


class CountForwards:
    """Count the images that a detector runs.

    Args:
        detector: The detector.
    """

    def __init__(self, detector: nn.Module):
        self.images = 0
        detector.backbone.register_forward_pre_hook(self.count)

    def count(self, _, inputs) -> None:
        """Add the batch."""
        self.images += len(inputs[0])


def measure_setting(name: str, rounds: int) -> dict:
    """Time one setting, as a row of the table."""
    with SETTINGS[name]() as generation:
        teacher, student = CountForwards(generation.teacher), CountForwards(generation.student)
        stages = generation.stages()
        passes = dict(teacher=teacher.images, student=student.images)
        seconds = measure.interleave(dict(inference=generation.inference,
                                          instances=generation.instance_pass), rounds, warmup=0)
        module = generation.module
        return dict(setting=name, images=len(module.candidates), passes=passes, stages=stages,
                    instances=sum(len(candidate.labels) for candidate in module.candidates),
                    batch_size=module.batch_size,
                    seconds={part: measure.summary(times) for part, times in seconds.items()},
                    ratio=measure.summary([ours / pure for ours, pure in zip(
                        seconds['instances'], seconds['inference'])]))


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument('--rounds', type=int, default=7, help='passes of each kind')
    measure.add_device_option(parser)
    args = parser.parse_args()
    rows = [measure_setting(name, args.rounds) for name in args.settings]
    measure.report('prototype_generation', rows, {
        'setting': lambda row: row['setting'],
        'images': lambda row: str(row['images']),
        'instances': lambda row: str(row['instances']),
        'batch': lambda row: str(row['batch_size']),
        'inference s': lambda row: f'{row["seconds"]["inference"]["median"]:.2f}',
        'pass s': lambda row: f'{row["seconds"]["instances"]["median"]:.2f}',
        'pass / inference': lambda row: measure.show(row['ratio']),
        'first generation s': lambda row: f'{row["stages"]["first"]:.1f}',
        'later ones s': lambda row: f'{row["stages"]["later"]:.1f}',
        'images run in both, teacher and student': lambda row: '{teacher}, {student}'.format(
            **row['passes']),
    }, 'Prototype generation against pure inference (median, quartiles)')


if __name__ == '__main__':
    main()
