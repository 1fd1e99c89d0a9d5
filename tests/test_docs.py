"""The documentation: its examples run, its lists are complete, its links lead somewhere."""

import ast
import doctest
import inspect
import re
import shutil
import sys

import pytest
import torch
from helpers import small_detectors as small
from helpers.distillers import build_distiller, losses_of
from helpers.running import REPOSITORY
from mmcv import Config
from mmcv.runner import HOOKS
from mmdet.models import BACKBONES, DETECTORS

from gkd.detectors.config_files import find_file
from gkd.detectors.source import DetectorSource
from gkd.registry import KNOWLEDGE
from gkd.running import load_config
from gkd.running.config import build_model
from gkd.zoo import of_configs
from studies import outcomes, zoo, zoo_mmdet3

DOCS = REPOSITORY / 'docs'
PAGES = sorted(DOCS.glob('*.md'))
WRITTEN = [*PAGES, REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md']


@pytest.fixture(scope='module')
def reference():
    """The module that makes the lists."""
    sys.path.insert(0, str(DOCS))
    try:
        import reference
    finally:
        sys.path.remove(str(DOCS))
    return reference


@pytest.fixture(scope='module')
def messages(reference):
    """The list of messages."""
    return reference.messages()


def example(page, name):
    """A block of code in a page, marked for the tests."""
    text = (DOCS / page).read_text()
    mark = f'<!-- run by the tests: {name} -->'
    return re.search(rf'{mark}\n```python\n(.*?)```', text, re.DOTALL)[1]


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The method of add_a_method.md in a file of its own; unregistered afterwards."""
    (tmp_path / 'my_methods.py').write_text(example('add_a_method.md', 'method'))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield 'my_methods'
    sys.modules.pop('my_methods', None)
    KNOWLEDGE.module_dict.pop('ObjectRelations', None)


def learn(model, data):
    """The example's loss before and after a small step against its gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss():
        return losses_of(model, data)['loss_relations']

    before = loss()
    before.backward()
    taken = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([parameter.grad.norm() for parameter in taken]).norm()
    assert norm > 0
    with torch.no_grad():
        for parameter in taken:
            parameter -= 1e-3 * before / norm ** 2 * parameter.grad
    return before.item(), loss().item()


@pytest.mark.parametrize('family', small.FAMILIES)
def test_the_worked_method_teaches(method, family):
    __import__(method)
    detector = small.FAMILIES[family]
    model = build_distiller(detector(24), detector(), knowledge=[dict(type='ObjectRelations')])
    before, after = learn(model, small.batch())
    assert 0 < after < before
    empty = losses_of(model, small.batch(boxes=()))['loss_relations']
    assert empty.item() == 0 and empty.requires_grad


def test_common_pairs_are_those_of_the_model_zoo():
    pairs = re.findall(r'^\| `(\S+_coco)` \| `(\S+_coco)` \|$',
                       (DOCS / 'your_own_detector.md').read_text(), re.MULTILINE)
    assert len(pairs) == 9
    for student, teacher in pairs:
        assert find_file(f'mmdet::{student}.py')
        assert len(list(of_configs(f'mmdet::{teacher}.py'))) == 1


@pytest.mark.parametrize('version, lists', [(2, zoo), (3, zoo_mmdet3)])
def test_the_detectors_page_is_what_the_command_writes(version, lists):
    """With a row for each config and pair of the lists, and the number of those that work."""
    page = (DOCS / 'detectors.md').read_text()
    assert page.startswith(outcomes.INTRODUCTION)
    tables = re.findall(
        rf'^## MMDetection {version}.*?\n\n(\d+) of (\d+) work.\n\n(.*?)(?:\n\n|\Z)', page,
        re.DOTALL | re.MULTILINE)
    listed = [[(name, name) for name in lists.SELF_PAIRS], lists.PAIRS]
    assert len(tables) == len(listed)
    for (works, count, table), pairs in zip(tables, listed):
        rows = table.splitlines()[2:]
        assert [row.split(' | ')[0] for row in rows] == [
            f'| {outcomes.pair_name(*pair)}' for pair in pairs]
        assert (int(works), int(count)) == (sum('| **' not in row for row in rows), len(rows))
    readme = (REPOSITORY / 'README.md').read_text()
    assert '{} of {}'.format(*tables[0]) in readme


def test_the_worked_configs_describe_what_the_pages_say(method, tmp_path):
    shutil.copytree(REPOSITORY / 'configs' / '_base_', tmp_path / '_base_')
    (tmp_path / 'gkd_parts.py').write_text(example('your_own_detector.md', 'config'))
    (tmp_path / 'relations.py').write_text(example('add_a_method.md', 'config'))
    config = load_config(str(tmp_path / 'relations.py'))
    assert [kind['type'] for kind in config.model.knowledge] == \
        ['RobustDistillingModule', 'ObjectRelations']
    for role in ('teacher', 'student'):
        source = DetectorSource.parse(config.model[role], role)
        assert source.checkpoint == f'checkpoints/my_{role}.pth'
        assert source.model_config().bbox_head.num_classes == len(config.data.train.classes) == 3
    assert config.data.train.ann_file == 'data/parts/train.json'
    assert config.data.train.pipeline and config.data.val.pipeline
    # The same with detectors that are small and need no files.
    config.model.update(teacher=dict(config=small.retinanet(24), checkpoint=None),
                        student=dict(config=small.retinanet()))
    model = build_model(Config(config._cfg_dict.to_dict()))
    model.bank = small.random_bank(model.pair)
    losses = losses_of(model, small.batch())
    assert {'loss_global', 'loss_relations'} <= losses.keys()


def test_every_argument_of_every_registered_class_is_in_the_config_keys(reference):
    page = reference.config_keys()
    registered = [kind for registry in (DETECTORS, KNOWLEDGE, HOOKS, BACKBONES)
                  for kind in registry.module_dict.values()
                  if kind.__module__.startswith('gkd.')]
    assert len(registered) >= 15
    for kind in [*registered, *reference.PLACES.values()]:
        if not reference.arguments(kind):
            continue
        section = re.search(rf'^### .*`{kind.__name__}`\n(.*?)(?=^### |\Z)', page,
                            re.DOTALL | re.MULTILINE)
        assert section or kind is DetectorSource, f'{kind.__name__} is not in PLACES'
        for name in reference.arguments(kind):
            row = re.search(rf'^\| `{re.escape(name)}` \| .* \| (.*) \|$',
                            section[1] if section else page, re.MULTILINE)
            assert row and row[1].strip(), f'{kind.__name__}.{name}'


def test_defaults_in_the_config_keys_are_those_of_the_code(reference):
    page = reference.config_keys()
    assert '| `max_images` | `800` |' in page
    # The parser's defaults are written down by hand.
    source = DetectorSource.parse(dict(config='x'), 'model.student')
    assert (source.checkpoint, source.overrides) == (None, {})
    fields = set(inspect.signature(DetectorSource).parameters) - {'key'}
    assert reference.SOURCE_DEFAULTS.keys() == fields


def sources():
    """Syntax trees of the package and the tools."""
    for path in [*(REPOSITORY / 'gkd').rglob('*.py'), *(REPOSITORY / 'tools').glob('*.py')]:
        yield ast.parse(path.read_text())


def test_top_level_keys_and_variables_are_in_the_config_keys():
    page = (DOCS / 'config_keys.md').read_text()
    keys = {node.args[0].value for tree in sources() for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == 'config.get'
            and isinstance(node.args[0], ast.Constant)}
    # Keys of parts that are called `config` too: of a model, a data set or a detector.
    keys -= {'ann_file', 'classes', 'data_preprocessor', 'data_root', 'file_client_args',
             'img_prefix', 'init_cfg', 'test_cfg', 'train_cfg', 'type'}
    assert len(keys) > 10
    assert not [key for key in keys if f'`{key}`' not in page]
    read = {node.value for tree in sources() for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            and re.fullmatch(r'(GKD|SLURM|MASTER|CUDA|TORCH|OMP)_[A-Z_]+|RANK|WORLD_SIZE'
                             r'|LOCAL_RANK', node.value)}
    scripts = ''.join(path.read_text() for path in (REPOSITORY / 'tools').glob('*.sh'))
    read |= set(re.findall(r'\$\{([A-Z_]{3,}):-', scripts))
    assert {'GKD_VENV', 'SLURM_PROCID', 'NNODES'} <= read
    assert not [name for name in read if f'`{name}`' not in page]


def test_every_command_is_listed(reference):
    page = reference.commands()
    for path in (REPOSITORY / 'tools').iterdir():
        if path.suffix in ('.py', '.sh') and path.name not in ('launch.sh', 'torchrun.py'):
            assert f'## tools/{path.name}\n' in page
    assert '| `--resume` `auto\\|never\\|CHECKPOINT` |' in page and str(REPOSITORY) not in page


@pytest.mark.parametrize('message', [
    # One of each way to put a message together.
    'no such config file: {path}',
    '{key}.config: no such file: {config} (looked in {…})',
    '{path} is damaged: its checksum is missing. Generate the prototypes again or point to the '
    'right file.',
    '{source} does not fit the {model_name} that it is for; nothing was loaded.',
    '{name} is not installed. The shortest way:',
    'no Python 3.9 to 3.{…} found. Found:',
])
def test_messages_are_listed(messages, message):
    assert message in messages


def test_every_error_type_with_messages_is_a_section(reference, messages):
    assert set(re.findall(r'^### (\w+)$', messages, re.MULTILINE)) >= \
        set(reference.ERRORS) - {'GKDError'}


def test_every_module_is_in_the_api_reference(reference):
    pages = ''.join(reference.api().values())
    modules = {path.relative_to(REPOSITORY).with_suffix('').as_posix().replace('/', '.')
               for path in (REPOSITORY / 'gkd').rglob('*.py')}
    modules = {module.replace('.__init__', '') for module in modules
               if not module.endswith('__main__')}
    listed = set(re.findall(r'^\.\. automodule:: (\S+)', pages, re.MULTILINE))
    elsewhere = {module for module in modules for name in reference.ELSEWHERE
                 if module == name or module.startswith(f'{name}.')}
    assert modules - elsewhere == listed and set(reference.ELSEWHERE) <= elsewhere


def anchors(path):
    """Anchors of a page's headings, as GitHub names them."""
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r'^#+ (.*)', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-') for title in titles}


@pytest.mark.parametrize('path', WRITTEN, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?:', target):
            continue
        name, _, anchor = target.partition('#')
        file = path if not name else path.parent / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / 'index.md').read_text()
    listed = re.findall(r'^(\w+)$', index, re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != 'index')


@pytest.mark.parametrize('path', WRITTEN, ids=lambda path: path.name)
def test_examples_in_pages_run(path):
    failed, _ = doctest.testfile(str(path), module_relative=False,
                                 optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not failed
