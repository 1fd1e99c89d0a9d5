"""A method of the user's own that does not keep to the rules is refused, with its name."""

import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import build_distiller, losses_of
from torch import nn

from gkd.commands.explain import describe
from gkd.errors import ConfigError
from gkd.knowledge import Knowledge
from gkd.registry import KNOWLEDGE


@pytest.fixture
def teach():
    """Losses of a step that a method teaches; afterwards the method is unregistered."""
    names = set(KNOWLEDGE)

    def losses(method, *others):
        KNOWLEDGE.register_module(module=method, force=True)
        model = build_distiller(small.retinanet(), small.retinanet(),
                                knowledge=[dict(type=method.__name__), *others])
        return losses_of(model, small.batch())

    yield losses
    for name in set(KNOWLEDGE) - names:
        del KNOWLEDGE.module_dict[name]


def returning(make):
    """A method whose ``forward`` returns what ``make`` makes of a map of the student."""
    return type('Mine', (Knowledge,), dict(
        forward=lambda self, step: make(step.student.maps[0].mean())))


class OfOtherTypes(Knowledge):
    """Its annotations name what no module of it imports."""

    def __init__(self, pair, gain: 'Unknown' = 1.0):  # noqa: F821
        super().__init__(pair)

    def forward(self, step):
        return dict(loss_mine=step.student.maps[0].mean())


class NoModule:
    def __init__(self, pair):
        pass


def function(pair):
    return PlainModule(pair)


class PlainModule(nn.Module):
    def __init__(self, pair):
        super().__init__()

    def forward(self, step):
        return {}


class Forgot(Knowledge):
    def __init__(self, pair):
        self.pair = pair

    def forward(self, step):
        return {}


class Wishes(Knowledge):
    needs = 'logits'

    def forward(self, step):
        return {}


class Silent(Knowledge):
    pass


class Fails(Knowledge):
    def __init__(self, pair):
        raise RuntimeError('no such weights')

    def forward(self, step):
        return {}


@pytest.mark.parametrize('method, message', [
    (NoModule, 'NoModule is no subclass of gkd.knowledge.Knowledge'),
    (PlainModule, 'PlainModule is no subclass'),
    (function, 'function is no subclass'),
    (Silent, r'Silent has no method `forward\(self, step\)`'),
    (Forgot, r'Forgot.__init__ does not call `super\(\).__init__\(pair\)`'),
    (Wishes, "Wishes.needs is 'logits'"),
    (Fails, r'Fails cannot be built: RuntimeError: no such weights \(in .*test_own_method.py:\d+'),
])
def test_a_class_that_cannot_teach_is_refused_when_it_is_built(teach, method, message):
    with pytest.raises(ConfigError, match=f'model.knowledge: {message}'):
        teach(method)


def test_a_class_whose_annotations_cannot_be_read_teaches(teach):
    assert 'loss_mine' in teach(OfOtherTypes)


@pytest.mark.parametrize('make, message', [
    (lambda x: x, 'returned a Tensor; it must return a dict'),
    (lambda x: None, 'returned a NoneType'),
    (lambda x: {3: x}, '3 is no name'),
    (lambda x: dict(loss_mine=1.0), 'loss_mine is a float'),
    (lambda x: dict(loss_mine=[x, 2]), 'loss_mine is a int'),
    (lambda x: dict(loss_mine=(x, x)), 'loss_mine is a tuple'),
    (lambda x: dict(loss_mine=torch.tensor(3)), 'loss_mine is torch.int64'),
    (lambda x: dict(mine=x), 'mine would not be added to the losses'),
    (lambda x: dict(mine=[x.detach(), x]), 'mine would not be added to the losses'),
    (lambda x: dict(loss_mine=x.detach()), 'loss_mine has no gradient'),
    (lambda x: dict(loss_cls=x), 'returned loss_cls, as the student'),
])
def test_what_a_method_returns_is_checked(teach, make, message):
    with pytest.raises(ConfigError, match=r'model.knowledge: Mine.forward:? ' + message):
        teach(returning(make))


@pytest.mark.parametrize('knowledge', [dict(type='PKD'), ['PKD'], 'PKD'])
def test_what_is_taught_is_a_list_of_dicts(knowledge):
    with pytest.raises(ConfigError, match='model.knowledge = .*must be a list of dicts'):
        build_distiller(small.retinanet(), small.retinanet(), knowledge=knowledge)


def test_lists_and_numbers_for_the_log_are_taken(teach):
    losses = teach(returning(lambda x: dict(loss_mine=[x, x.detach()], mean=x.detach())),
                   dict(type='PKD'))
    assert {'loss_mine', 'mean', 'loss_pkd'} <= losses.keys()


def test_a_loss_may_be_constant_in_a_later_step(teach):
    taught = []

    def once(x):
        taught.append(x)
        return dict(loss_mine=x if len(taught) == 1 else x.new_zeros(()))

    KNOWLEDGE.register_module(module=returning(once), force=True)
    model = build_distiller(small.retinanet(), small.retinanet(), knowledge=[dict(type='Mine')])
    for connected in True, False:
        assert losses_of(model, small.batch())['loss_mine'].requires_grad == connected


def test_a_step_without_objects_does_not_tell_whether_a_method_teaches(teach):
    KNOWLEDGE.register_module(module=returning(lambda x: dict(loss_mine=x.detach())), force=True)
    model = build_distiller(small.retinanet(), small.retinanet(), knowledge=[dict(type='Mine')])
    assert not losses_of(model, small.batch(boxes=()))['loss_mine'].requires_grad
    with pytest.raises(ConfigError, match='loss_mine has no gradient'):
        losses_of(model, small.batch())


def test_maps_that_are_frozen_do_not_tell_whether_a_method_teaches(teach):
    KNOWLEDGE.register_module(module=returning(lambda x: dict(loss_mine=x)), force=True)
    model = build_distiller(small.retinanet(), small.retinanet(), knowledge=[dict(type='Mine')])
    for part in model.student.backbone, model.student.neck:
        part.requires_grad_(False)
    assert not losses_of(model, small.batch())['loss_mine'].requires_grad


def test_an_error_inside_a_library_names_the_line_that_called_it():
    try:
        torch.nn.functional.normalize(torch.zeros(2), dim=3)
    except IndexError as error:
        text = describe(error)
    assert 'functional.py' in text and f'called from {__file__}' in text
