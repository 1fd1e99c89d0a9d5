"""A patch of a decoder of MMDetection 3.x."""

from __future__ import annotations

import functools

BORROWED = 'aux_reg_branches'


def keep_borrowed_layers_out_of_ddq() -> None:
    """Let DDQ's decoder use layers of the head without holding their weights a second time.

    Reason: the first training step makes them a part of the decoder, so that its checkpoints have
    weights that a detector before its first step lacks: they fitted neither a resumed training nor
    a teacher.
    For: mmdet 3.2 and 3.3.
    """
    from mmdet.models.detectors import DDQDETR
    from mmdet.models.layers.transformer import DDQTransformerDecoder

    prepare, load = DDQDETR.pre_decoder, DDQTransformerDecoder._load_from_state_dict

    @functools.wraps(prepare)
    def prepare_and_return(self, *args, **kwargs):
        prepared = prepare(self, *args, **kwargs)
        borrowed = self.decoder._modules.pop(BORROWED, None)
        if borrowed is not None:
            vars(self.decoder)[BORROWED] = borrowed  # setattr would make it a part again
        return prepared

    @functools.wraps(load)
    def load_own(self, state_dict, prefix, *args, **kwargs):
        # Of checkpoints that were written without this patch.
        for name in [name for name in state_dict if name.startswith(f'{prefix}{BORROWED}.')]:
            del state_dict[name]
        load(self, state_dict, prefix, *args, **kwargs)

    DDQDETR.pre_decoder = prepare_and_return
    DDQTransformerDecoder._load_from_state_dict = load_own
