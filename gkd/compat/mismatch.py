"""Why weights do not fit a model, in words for the person who chose the file."""

from __future__ import annotations

import re
from collections.abc import Collection

from gkd.repository import tool

_SHOWN = 8
# Layers whose outputs are counted in classes.
_CLASS_LAYERS = re.compile(r'(fc_cls|fc_reg|(?<!rpn)_cls|cls_pred|conv_logits)\.(weight|bias)$')
_WRAPPERS = ('student.', 'teacher.', 'model.', 'detector.')


def describe_mismatch(source: str, model_name: str, missing: list[str], unexpected: list[str],
                      misshaped: dict, in_model: Collection, in_file: Collection,
                      problem: str = '') -> str:
    """Say which keys do not fit, and the likely cause.

    Args:
        source: The file.
        model_name: The model's class.
        missing: Keys of the model that the file lacks.
        unexpected: Keys of the file that the model lacks.
        misshaped: Shapes ``(in the file, in the model)`` by key.
        in_model: All keys of the model.
        in_file: All keys of the file.
        problem: What torch said, if it could not load at all.

    Returns:
        The message: one line of summary, the likely cause, the keys.
    """
    lines = [f'{source} does not fit the {model_name} that it is for; nothing was loaded.',
             'Likely cause: ' + likely_cause(missing, unexpected, misshaped, in_model, in_file)]
    if missing:
        lines += [f'Missing in the file ({len(missing)}):', *_some(missing)]
    if unexpected:
        lines += [f'Unexpected in the file ({len(unexpected)}):', *_some(unexpected)]
    if misshaped:
        lines += [f'Of another shape ({len(misshaped)}):',
                  *_some([f'{name}: {file} in the file, {model} in the model'
                          for name, (file, model) in misshaped.items()])]
    if problem:
        lines.append(problem)
    return '\n'.join(lines)


def likely_cause(missing: list[str], unexpected: list[str], misshaped: dict,
                 in_model: Collection, in_file: Collection) -> str:
    """Guess the likely cause from the keys; arguments as in :func:`describe_mismatch`."""
    if any(name.startswith('student.') for name in in_file) and \
            not any(name.startswith('student.') for name in in_model):
        return ('this is the full checkpoint of a distillation run, and the model is a plain '
                'detector. Export the student first: python '
                + tool('export_student.py') + '.')
    if any(name.startswith('student.') for name in in_model) and \
            not any(name.startswith('student.') for name in in_file):
        return ('this is the checkpoint of a plain detector, and the model is a Distiller, whose '
                'checkpoints alone `load_from` and --resume take. Name it as '
                '`model.student.checkpoint` (or `model.teacher.checkpoint`).')
    for prefix in _WRAPPERS:
        inside = {name[len(prefix):] for name in in_file if name.startswith(prefix)}
        if len(inside & set(in_model)) > len(in_model) // 2:
            return f"the detector's weights stand under '{prefix}...': saved from a wrapper of it."
    without_backbone = {name[len('backbone.'):] for name in in_model
                        if name.startswith('backbone.')}
    if without_backbone and len(without_backbone & set(in_file)) > len(without_backbone) // 2:
        return ('this is a bare backbone (torchvision or classification weights), not a detector. '
                "To start from it, give the config's backbone "
                "init_cfg=dict(type='Pretrained', checkpoint=FILE) and no checkpoint.")
    if not set(in_file) & set(in_model):
        return 'this is the checkpoint of quite another model: not one key is in common.'
    if misshaped and not missing and not unexpected and all(
            _CLASS_LAYERS.search(name) and file[1:] == model[1:]
            for name, (file, model) in misshaped.items()):
        return ('another number of classes (the layers that predict classes differ in their '
                f'outputs only: {_outputs(misshaped)}). Give the config the classes that the file '
                'was trained for.')
    backbone = [name for name in [*missing, *unexpected, *misshaped] if 'backbone.' in name]
    if backbone:
        return ('another backbone: ' + _depths(in_file, in_model) + 'Use the config that the file '
                'was trained with.')
    if misshaped and not missing and not unexpected:
        return ('other widths (channels) or another number of anchors. Use the config that the '
                'file was trained with.')
    return 'another kind of neck or head. Use the config that the file was trained with.'


def _outputs(misshaped: dict) -> str:
    file, model = next(iter(misshaped.values()))
    return f'{file[0]} in the file, {model[0]} in the model'


def _depths(in_file: Collection, in_model: Collection) -> str:
    """The number of blocks of a ResNet's stages, where the two differ: 'R101 or R50?'."""
    def blocks(names: Collection) -> list[int]:
        found: dict = {}
        for name in names:
            match = re.search(r'backbone\.layer(\d)\.(\d+)\.', name)
            if match:
                stage, block = map(int, match.groups())
                found[stage] = max(found.get(stage, 0), block + 1)
        return [found[stage] for stage in sorted(found)]

    file, model = blocks(in_file), blocks(in_model)
    if file and model and file != model:
        return (f'another depth (blocks per stage {file} in the file, {model} in the model). ')
    return ''


def _some(entries: list[str]) -> list[str]:
    shown = [f'  {entry}' for entry in entries[:_SHOWN]]
    if len(entries) > _SHOWN:
        shown.append(f'  ... and {len(entries) - _SHOWN} more')
    return shown
