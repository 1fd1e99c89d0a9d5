"""The text of a config, which a training keeps, is Python that gives the same values again."""

from pathlib import Path

import pytest

from gkd.detectors.config_files import read_config
from gkd.errors import ConfigError
from gkd.frameworks import Config


@pytest.mark.parametrize('value', [
    "Jo's data", '"both" of Jo\'s', 'C:\\new\\train', 'two\nlines', float('inf'),
    {"Jo's": 1, 'plain': 2}, {'class': 1, 'from': "Jo's"}, ["Jo's", float('-inf')],
    ({'name': "Jo's"}, 2), {'backbone.depth': 18}], ids=str)
def test_values_are_read_as_they_were_written(value):
    config = Config(dict(data=dict(value=value), value=value))
    again = Config.fromstring(config.pretty_text, '.py')
    assert again.data.value == again.value == value


def test_paths_are_text_and_imports_are_left_out(tmp_path):
    (tmp_path / "Jo's.py").write_text(
        'from pathlib import Path\nfolder = Path("data")\nann_file = [folder / "train.json"]\n')
    config = read_config(str(tmp_path / "Jo's.py"))
    again = Config.fromstring(config.pretty_text, '.py')
    assert again._cfg_dict == dict(folder='data', ann_file=['data/train.json'])
    assert config.ann_file == [Path('data/train.json')]  # what is used stays as it is


def test_what_has_no_text_is_named():
    with pytest.raises(ConfigError, match=r"model\.head\.act = <class 'dict'> cannot be kept as"):
        Config(dict(model=dict(head=dict(act=dict)))).pretty_text  # noqa: B018
