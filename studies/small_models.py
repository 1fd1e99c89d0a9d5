"""Small versions of the zoo's detectors, which are tried quickly on a CPU.

Backbones have one block per stage if their class counts blocks, and all parts have an eighth of
their channels if backbone and heads allow it.
"""

from __future__ import annotations

import copy
import re

from mmdet.models.backbones import SSDVGG, ResNet

from gkd.detectors.source import DetectorSource, drop_pretrained
from gkd.detectors.view import probe
from gkd.frameworks import BACKBONES, MMDET_SCOPE, Config, ConfigDict, build_detector
from gkd.progress import without_details
from gkd.randomness import isolated_random_numbers
from studies.door import with_small_batches

NARROWER = 8
CHANNELS = re.compile(r'(channels?|planes|dims|num_feats|filters)$')
PROPOSALS = 64  # per image


def small_config(name: str) -> dict:
    """The small `model` config of a detector of MMDetection."""
    source = DetectorSource.parse(dict(config=f'{MMDET_SCOPE}{name}.py'), 'config')
    return made_small(source.model_config())


def made_small(model: ConfigDict) -> dict:
    """A detector's `model` config with nothing to download, narrower if it can be."""
    drop_pretrained(model)
    if 'teacher_ckpt' in model:  # distils by itself
        model.teacher_ckpt = None
    if 'teacher_config' in model:
        model.teacher_config = Config.fromfile(model.teacher_config)
        drop_pretrained(model.teacher_config.model)
    with_small_batches(model)
    without_other_processes(model)
    with_few_proposals(model)
    with_few_blocks(model.get('backbone', {}))
    slim = narrower(model)
    try:
        with isolated_random_numbers(), without_details():
            probe(build_detector(copy.deepcopy(slim)), 'student')
    except Exception:
        return model
    return slim


def without_other_processes(entry) -> None:
    """Replace synchronised by plain batch normalisation, at every depth."""
    if isinstance(entry, dict):
        if entry.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN'):
            entry['type'] = 'BN'
        entry = list(entry.values())
    if isinstance(entry, (list, tuple)):
        for value in entry:
            without_other_processes(value)


def with_few_proposals(entry) -> None:
    """Let heads, at every depth, sample and keep few proposals: most of the time goes there."""
    if isinstance(entry, dict):
        for name in ('nms_pre', 'max_per_img', 'num', 'num_proposals'):
            if type(entry.get(name)) is int and (name != 'num' or 'pos_fraction' in entry):
                entry[name] = min(entry[name], PROPOSALS)
        if entry.get('clip_border') is False:
            # Untrained QueryInst's boxes lie beyond the image, where no mask can be pasted.
            entry['clip_border'] = True
        entry = list(entry.values())
    if isinstance(entry, (list, tuple)):
        for value in entry:
            with_few_proposals(value)


def with_few_blocks(backbone: dict) -> None:
    """Set a backbone up with one block a stage, where its settings count them."""
    kind = backbone.get('type')
    if kind == 'SwinTransformer':
        backbone.update(depths=[1] * 4)
    elif kind in ('PyramidVisionTransformer', 'PyramidVisionTransformerV2'):
        backbone.update(num_layers=[1] * 4)
    elif kind == 'CSPDarknet':
        backbone.update(deepen_factor=0.1)
    elif kind == 'HourglassNet':
        backbone.update(stage_blocks=[1] * 6)
    elif kind == 'HRNet':
        for stage in backbone.extra.values():
            stage.update(num_modules=1, num_blocks=[1] * len(stage.num_blocks))
    elif kind == 'SSDVGG':
        # It returns what the fourth stage's last layer makes, and the last layer of all.
        layers = [2 * blocks + 1 for blocks in SSDVGG.arch_settings[backbone.depth]]
        backbone.update(out_feature_indices=(sum(layers[:4]) - 2, sum(layers) + 3))


def narrower(model: dict) -> dict:
    """A config with an eighth of the channels, if the backbone allows it."""
    model = copy.deepcopy(model)
    backbone = model.get('backbone', {})
    kind = BACKBONES.get(backbone.type) if backbone else None
    if kind is None or 'shared_head' in model.get('roi_head', {}) or 'teacher_backbone' in model:
        return model
    if model.get('as_two_stage') or model.type == 'ConditionalDETR':
        return model  # they describe boxes by 256 numbers, whatever the width
    in_channels = copy.deepcopy(first_neck(model).get('in_channels'))
    if 'decoder' in model:  # MMDetection 3's transformers, whose heads take 256 by default
        model['bbox_head'].setdefault('embed_dims', 256)
    model = divided({**model, 'backbone': {}})
    neck = first_neck(model)
    if 'rfp_backbone' in neck:
        neck['rfp_backbone'].update(base_channels=64 // NARROWER)
    if issubclass(kind, ResNet) and 'arch' not in backbone:
        backbone.update(base_channels=64 // NARROWER)
        backbone = divided(backbone)
    elif backbone.type in ('SwinTransformer', 'PyramidVisionTransformer'):
        backbone.update(embed_dims=backbone.get('embed_dims', 64) // NARROWER)
    elif backbone.type == 'CSPDarknet':
        backbone.update(widen_factor=backbone.widen_factor / NARROWER)
    else:
        if backbone.type == 'HourglassNet':
            backbone.update(feat_channel=256 // NARROWER, stage_channels=[256 // NARROWER] * 6)
        if in_channels is not None:
            neck['in_channels'] = in_channels
    model['backbone'] = backbone
    return ConfigDict(model)


def first_neck(model: dict) -> dict:
    """The part of a neck that the backbone feeds; some have several."""
    neck = model.get('neck') or {}
    return neck[0] if isinstance(neck, (list, tuple)) else neck


def divided(entry):
    """Divide all channel counts, at every depth, by ``NARROWER``; set ``num_groups`` to 4."""
    if isinstance(entry, dict):
        return {key: fewer(value) if CHANNELS.search(key) else 4 if key == 'num_groups'
                else divided(value) for key, value in entry.items()}
    return [divided(value) for value in entry] if isinstance(entry, (list, tuple)) else entry


def fewer(value):
    """A number of channels, or several, divided."""
    if isinstance(value, (list, tuple)):
        return [fewer(inner) for inner in value]
    return value // NARROWER if type(value) is int and value >= 64 else value


def shorten_backbones() -> None:
    """Let backbones of this process have one block a stage, where their class counts blocks."""
    for kind in BACKBONES.module_dict.values():
        settings = getattr(kind, 'arch_settings', None)
        if isinstance(settings, dict):
            kind.arch_settings = {depth: one_block_a_stage(value)
                                  for depth, value in settings.items()}


def one_block_a_stage(setting):
    """A backbone's entry ``(block, counts)``, ``(counts, channels)`` or counts, with 1 each."""
    if isinstance(setting, tuple) and all(type(count) is int for count in setting):
        return (1,) * len(setting)
    if isinstance(setting, tuple) and len(setting) == 2:
        counts = [isinstance(part, tuple) and all(type(count) is int for count in part)
                  for part in setting]
        return tuple(tuple(1 for _ in part) if is_counts else part
                     for part, is_counts in zip(setting, counts))
    return setting
