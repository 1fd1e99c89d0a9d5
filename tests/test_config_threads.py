"""Threads of a comparison read configs, which Python 3.11 must parse one at a time."""

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest

from gkd.detectors.config_files import read_config
from gkd.report.runs import parse_config

LOGGED = 'data = dict(train=dict(), val=dict(), test=dict())\nrunner = dict(max_epochs=1)'


@pytest.fixture
def parsing(monkeypatch):
    """Fail if a thread parses code while another one does."""
    inside = []
    parse = ast.parse

    def watched(*args, **kwargs):
        assert not set(inside) - {get_ident()}, 'two threads parse at once'
        inside.append(get_ident())
        try:
            time.sleep(0.01)  # lets others come in
            return parse(*args, **kwargs)
        finally:
            inside.remove(get_ident())

    monkeypatch.setattr(ast, 'parse', watched)


@pytest.mark.parametrize('use', [
    lambda path: parse_config(LOGGED, 'work'), read_config], ids=['log', 'file'])
def test_one_thread_at_a_time_parses(use, parsing, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('a = 1\n')
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(use, str(path)) for _ in range(12)]:
            done.result()
