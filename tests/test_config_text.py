"""A config's text is read as it was written, and nothing in it is run."""

import math

import pytest

from gkd.detectors.config_text import parsed
from gkd.errors import ConfigError
from gkd.frameworks import Config
from gkd.report.runs import parse_config

VALUES = dict(
    model=dict(type='RetinaNet', backbone={'a-b': 1, 'class': None}),
    sizes=[(1333, 640), (1, -2.5)],
    empty=dict(), path=r'C:\data "x" it\'s', one=(1,), gpu_ids=range(0, 8), rate=-math.inf,
    flag=True, nested=[dict(type='A', of=[dict(b=())])])


def test_what_was_written_is_read_again():
    assert parsed(Config(VALUES).pretty_text) == VALUES
    assert parsed('a = dict(b=1, **{"c-d": 2})') == dict(a={'b': 1, 'c-d': 2})


@pytest.mark.parametrize('text', [
    'import os\nos.mkdir("run")', 'a = __import__("os").mkdir("run")', 'a = dict(b=print(1))',
    'a = [x for x in ()]', 'a = dict', 'a = b', 'a.b = 1', 'def', f'a = {"[" * 300}{"]" * 300}',
    'a = open("run", "w")', 'a = range("1")', 'a = float([])'])
def test_anything_else_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='more than settings with values|malformed'):
        parsed(text)
    with pytest.raises(ConfigError, match='work: the config in its log cannot be read'):
        parse_config(text, 'work')
    assert not list(tmp_path.iterdir())
