"""What keeps a config from being read is named, with its place."""

import pytest

from gkd.detectors.config_files import read_config
from gkd.detectors.source import DetectorSource
from gkd.errors import ConfigError
from gkd.installed import mmdet_major


@pytest.mark.parametrize('name, code, says', [
    ('own_one', 'import not_there_at_all',
     r"Its `custom_imports` \(own_one\) fail: ModuleNotFoundError: No module named "
     r"'not_there_at_all' \(in .*own_one.py:1"),
    ('own_two', '\nfrom math import tan_of_all',
     r"\(own_two\) fail: ImportError: cannot import name 'tan_of_all' .*own_two.py:2"),
    ('own_three', 'x = {}["a"]', r"KeyError: 'a' \(in .*own_three.py:1"),
    ('own_four.inner', '', r"fail: ModuleNotFoundError: No module named 'own_four.inner'"),
    ('own_five', None, r'\(own_five\) need own_five, which is not installed: .*PYTHONPATH'),
])
def test_a_module_of_the_users_own_that_fails(tmp_path, monkeypatch, name, code, says):
    monkeypatch.syspath_prepend(tmp_path)
    if code is not None:
        (tmp_path / f'{name.partition(".")[0]}.py').write_text(code)
    config = tmp_path / 'config.py'
    config.write_text(f'custom_imports = dict(imports=[{name!r}], allow_failed_imports=False)\n')
    with pytest.raises(ConfigError, match=says):
        read_config(str(config))


def test_a_config_that_fails(tmp_path):
    config = tmp_path / 'config.py'
    place = 'line 2 of it' if mmdet_major() == 2 else 'config.py:2'
    config.write_text('a = {}\nb = a["c"]\n')
    with pytest.raises(ConfigError, match=rf"KeyError: 'c' \(in .*{place}"):
        read_config(str(config))


def test_a_hook_that_rebuilds_the_detector_is_refused_for_every_use(tmp_path):
    config = tmp_path / 'config.py'
    text = 'model = dict(type="RetinaNet")\ncustom_hooks = [dict(type="{}")]\n'
    config.write_text(text.format('RFSearchHook'))
    with pytest.raises(ConfigError, match='config.py has an RFSearchHook in `custom_hooks`'):
        read_config(str(config))
    source = DetectorSource.parse(dict(config=str(config)), 'model.teacher')
    with pytest.raises(ConfigError, match='^model.teacher.config: .* leave the hook out'):
        source.model_config()
    config.write_text(text.format('EMAHook'))
    assert read_config(str(config)).model.type == 'RetinaNet'


@pytest.mark.skipif(mmdet_major() == 3, reason='MMEngine replaces what such a config imports')
def test_an_import_of_a_config_that_fails(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text('import not_there_at_all\n')
    with pytest.raises(ConfigError, match=r"named 'not_there_at_all' \(in line 1 of it"):
        read_config(str(config))
