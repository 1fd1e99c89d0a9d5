"""A student that starts with parts of the teacher."""

import pytest
import torch
from helpers import small_detectors as small
from helpers import tiny_data
from helpers.distillers import assert_same_state, build
from mmcv import Config

from gkd.comparison.compare import plan
from gkd.detectors.source import DetectorSource
from gkd.errors import ConfigError
from gkd.report.names import PLAIN_STUDENT
from gkd.running.config import load_config

PARTS = ['neck', 'bbox_head']


def distiller(tmp_path, parts, teacher=None, checkpoint=None, seed=0):
    """A distiller whose teacher has weights of its own, as training starts with it."""
    teacher = teacher or small.retinanet()
    weights = tiny_data.write_weights(tmp_path / 'teacher.pth', teacher, seed=7)
    return build(dict(type='Distiller', teacher=dict(config=teacher, checkpoint=weights),
                      student=dict(config=small.retinanet(), checkpoint=checkpoint, inherit=parts),
                      knowledge=[dict(type='PKD')]), seed)


@pytest.mark.parametrize('own', [False, True], ids=['from scratch', 'from a checkpoint'])
def test_parts_are_the_teachers_and_the_rest_is_not(tmp_path, own):
    checkpoint = (tiny_data.write_weights(tmp_path / 'own.pth', small.retinanet(), seed=3)
                  if own else None)
    model = distiller(tmp_path, PARTS, checkpoint=checkpoint)
    usual = distiller(tmp_path, None, checkpoint=checkpoint)
    for name in PARTS:
        inherited = model.student.get_submodule(name).state_dict()
        assert_same_state(inherited, model.teacher.get_submodule(name).state_dict())
        assert any(not torch.equal(tensor, usual.student.get_submodule(name).state_dict()[key])
                   for key, tensor in inherited.items())
    assert_same_state(model.student.backbone.state_dict(), usual.student.backbone.state_dict())
    # It learns on its own from there.
    assert not {id(p) for p in model.student.parameters()} & {id(p) for p in
                                                              model.teacher.parameters()}
    assert all(parameter.requires_grad for parameter in model.student.neck.parameters())
    assert_same_state(distiller(tmp_path, PARTS, checkpoint=checkpoint).student.state_dict(),
                      model.student.state_dict())


def test_a_checkpoint_of_the_distiller_comes_after_what_is_inherited(tmp_path):
    model = distiller(tmp_path, PARTS)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    resumed = distiller(tmp_path, PARTS, seed=1)
    resumed.load_state_dict(model.state_dict())
    assert_same_state(resumed.state_dict(), model.state_dict())


@pytest.mark.parametrize('parts, teacher, problem', [
    (['neck'], 24, r'neck\.\S+ has the shape \(24, .* in the teacher and \(16, '),
    (['roi_head'], 16, "teacher RetinaNet has no 'roi_head'; its parts are backbone, neck"),
    ('neck', 16, "inherit = 'neck': must be a list"),
    ([''], 16, "has no ''")])
def test_what_cannot_be_inherited_is_named(tmp_path, parts, teacher, problem):
    with pytest.raises(ConfigError, match=problem):
        distiller(tmp_path, parts, teacher=small.retinanet(teacher))


def test_a_part_that_only_one_has_is_named(tmp_path):
    teacher = small.retinanet()
    teacher['bbox_head']['stacked_convs'] += 1
    with pytest.raises(ConfigError, match=r'only the teacher has bbox_head\.\S+; inherit only'):
        distiller(tmp_path, ['bbox_head'], teacher=teacher)


def test_a_teacher_inherits_nothing():
    with pytest.raises(ConfigError, match=r"model.teacher has unknown keys \['inherit'\]"):
        DetectorSource.parse(dict(config='a.py', inherit=PARTS), 'model.teacher')


def test_the_student_that_trains_alone_in_a_comparison_has_nothing_of_the_teacher(tmp_path):
    _, path = tiny_data.write_pair(tmp_path, 'one_stage', teacher_channels=16, epochs=1)
    config = load_config(path)
    config.model.student.inherit = PARTS
    recipes = dict(pkd=dict(knowledge=[dict(type='PKD')]))
    planned = plan(config, 'title', recipes, [0], None, str(tmp_path / 'work'))
    settings = {method: Config.fromfile(runs[0].config).model
                for method, runs in planned.runs.items()}
    assert settings['pkd'].student.inherit == PARTS
    assert 'inherit' not in settings[PLAIN_STUDENT].student
