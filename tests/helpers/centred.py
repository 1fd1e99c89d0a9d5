"""Images in the middle of larger ones, as CornerNet and CenterNet see them in tests."""

import numpy as np

from gkd.prototypes.features import CandidateImages, choose_candidates

CENTRED = dict(type='RandomCenterCropPad', ratios=None, border=None, mean=[0, 0, 0],
               std=[1, 1, 1], to_rgb=True, test_mode=True, test_pad_mode=['logical_or', 63],
               test_pad_add_pix=1)


def assert_boxes_lie_on_their_rectangles(dataset):
    """The last box of every image is a rectangle of one colour; nothing is drawn over it."""
    candidates = choose_candidates([dataset], max_images=99, min_size=0, seed=0)
    for image, boxes, (height, width) in CandidateImages(candidates):
        x1, y1, x2, y2 = boxes[-1].int().tolist()
        assert (image[:, y1:y2, x1:x2].flatten(1).std(dim=1) == 0).all()
        assert (x2, y2) <= (width, height) and image[:, y1 - 1, x1].ne(image[:, y1, x1]).any()
        assert np.less((height, width), image.shape[1:]).all()
