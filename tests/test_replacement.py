"""Settings of a config that are replaced by dotted name."""

import pytest
from mmcv import Config

from gkd.detectors.replacement import replace_settings
from gkd.errors import ConfigError


def config():
    return Config(dict(grad=dict(clip=None, other=1), hooks=[dict(a=1), dict(b=None)],
                       pair=(1, 2)))


@pytest.mark.parametrize('settings, place, found', [
    ({'grad.clip.max_norm': 35}, 'grad.clip', 'None'),
    ({'grad': dict(clip=dict(max_norm=35))}, 'grad.clip', 'None'),
    ({'hooks.1.b.deep.er': 3}, 'hooks.1.b', 'None'),
    ({'pair.0.a': 3}, 'pair', r'\(1, 2\)'),
])
def test_a_key_of_a_value_without_keys_is_named(settings, place, found):
    with pytest.raises(ConfigError, match=f'here: .* {place} is {found} .*{place}._delete_=True'):
        replace_settings(config(), settings, 'here')


@pytest.mark.parametrize('name', ['hooks.a', 'hooks.5.a', 'hooks.x.a'])
def test_an_entry_that_a_list_does_not_have_is_named(name):
    with pytest.raises(ConfigError, match=f'^here: {name} is no place in hooks, .* list of 2 .* '
                                          f'as in hooks.0'):
        replace_settings(config(), {name: 2}, 'here')


def test_what_the_message_says_to_write_works():
    changed = config()
    replace_settings(changed, {'grad.clip._delete_': True, 'grad.clip.max_norm': 35}, 'here')
    assert changed.grad == dict(clip=dict(max_norm=35), other=1)
    replace_settings(changed, {'grad._delete_': True, 'grad.clip.max_norm': 1}, 'here')
    assert changed.grad == dict(clip=dict(max_norm=1))


def test_new_places_lists_and_whole_values_are_replaced():
    changed = config()
    replace_settings(changed, {'new.deep': 1, 'hooks.0.a': 2, 'grad.other': None, 'pair': [3]},
                     'here')
    assert changed.new == dict(deep=1) and changed.hooks == [dict(a=2), dict(b=None)]
    assert changed.grad == dict(clip=None, other=None) and changed.pair == [3]
