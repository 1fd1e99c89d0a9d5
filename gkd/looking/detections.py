"""Draw several detectors' boxes on the same images, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from gkd.frameworks import Config, image_info
from gkd.looking.door import detect, load_detector, validation_datasets
from gkd.report.detections import draw_image, typical_images
from gkd.report.drawing import as_text, end_of, plt, save


def draw_detections(detectors: Sequence[tuple[str, Config, str]], path: str,
                    num_images: int = 2) -> None:
    """Draw what each detector finds on validation images with a typical number of objects.

    From every detector, the boxes with the highest scores are drawn, as many as the image has
    objects, because scores of different detectors cannot be compared. Green boxes match an object
    (IoU above 0.5), red ones none; objects without a matching box are yellow.

    Args:
        detectors: Title, config and checkpoint of each; distillation configs stand for their
            students.
        path: PNG file to write.
        num_images: Rows of the picture.
    """
    dataset, *_ = validation_datasets(detectors[0][1])
    images = typical_images(dataset, num_images)
    figure, axes = plt.subplots(num_images, len(detectors), squeeze=False,
                                figsize=(3.6 * len(detectors), 3.9 * num_images))
    for column, (title, config, checkpoint) in enumerate(detectors):
        model = load_detector(config, checkpoint)
        for row, index in enumerate(images):
            draw_image(axes[row, column], dataset, index, detect(model, dataset, index), title)
    for axis, index in zip(axes[:, 0], images):
        axis.text(-0.02, 0.5, as_text(end_of(image_info(dataset, index)['filename'], 44)),
                  transform=axis.transAxes, rotation=90, ha='right', va='center', fontsize=9)
    figure.supxlabel('green: class and place of an object; red: not; dashed yellow: missed',
                     fontsize=10)
    figure.tight_layout()
    save(figure, path)
