"""The pixels of an image that a pipeline has made, whichever MMDetection's pipeline it is."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd.detectors.images import ImageFormat, format_of
from gkd.frameworks import image_settings
from gkd.looking.door import validation_config
from gkd.looking.trained import TrainedPair


class Pixels:
    """Turns images of a pipeline into pixels and back.

    The pipelines of MMDetection 2 normalise images; those of 3 leave it to the detectors. Pixels
    are the same for both: from 0 to 255 in a file, less the mean colour, which is subtracted
    because :func:`studies.corruptions.corrupt` occludes with 0.

    Args:
        made: The format of the pipeline's images.
        normalised: That of the images that the student's layers get; gives the mean colour.

    Example:
        >>> raw = ImageFormat()
        >>> normalised = ImageFormat((30.0, 20.0, 10.0), (5.0, 5.0, 5.0), rgb=True)
        >>> reddish = torch.tensor([10.0, 20.0, 40.0]).reshape(3, 1, 1)  # blue first
        >>> Pixels(raw, normalised).of(reddish).flatten()
        tensor([ 0.,  0., 10.])
        >>> reddish = torch.tensor([2.0, 0.0, 0.0]).reshape(3, 1, 1)  # red first
        >>> Pixels(normalised, normalised).of(reddish).flatten()
        tensor([10.,  0.,  0.])
    """

    def __init__(self, made: ImageFormat, normalised: ImageFormat):
        mean = normalised.mean[::1 if made.rgb == normalised.rgb else -1]
        scale, shift, less = (torch.tensor(values).reshape(-1, 1, 1)
                              for values in (made.std, made.mean, mean))
        self.scale, self.shift = scale, shift - less

    @classmethod
    def of_validation(cls, trained: TrainedPair) -> Pixels:
        """Those of a config's validation images.

        The numbers of a pipeline whose images a custom step reads are taken as pixels.
        """
        made = format_of(validation_config(trained.config)) or ImageFormat()
        settings = image_settings(trained.distiller.student)
        return cls(made, made if settings is None else ImageFormat.of_preprocessor(settings))

    def of(self, images: Tensor) -> Tensor:
        """Pixels ``(..., 3, H, W)`` float of images of the pipeline."""
        return images * self.scale + self.shift

    def back(self, pixels: Tensor) -> Tensor:
        """Images of the pipeline from their pixels."""
        return (pixels - self.shift) / self.scale
