"""Files and folders import downwards only, in the order that CONTRIBUTING.md tells."""

import ast
import subprocess
import sys

from helpers.running import REPOSITORY

# The order of the rooms, top first: what is in one line does not import each other.
WRITTEN = (REPOSITORY / 'CONTRIBUTING.md').read_text(encoding='utf-8')
LINES = WRITTEN.split('```text\n')[1].split('```')[0].splitlines()
LEVELS = {place.replace('/__init__.py', '').replace('.py', '').strip('/').replace('/', '.'): number
          for number, line in enumerate(LINES) for place in line.split('  ')[0].split()}
# Any import of a module inside gkd runs `gkd/__init__.py`, which knows the rooms below it.
FRONT = 'gkd'


def name_of(path):
    """Dotted name of a file."""
    parts = path.relative_to(REPOSITORY).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {name_of(path): path for folder in ('gkd', 'studies', 'tools', 'benchmarks')
         for path in sorted((REPOSITORY / folder).rglob('*.py')) if '.mim' not in path.parts}


def imports_of(name, text):
    """Modules of the project that a file imports, inside of functions and for annotations too."""
    package = name if FILES[name].name == '__init__.py' else name.rpartition('.')[0]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                outer = package.split('.')[:len(package.split('.')) - node.level + 1]
                base = '.'.join([*outer, *filter(None, [node.module])])
            for alias in node.names:
                inner = f'{base}.{alias.name}'
                found.add(inner if inner in FILES else base)
    return {module for module in found if module in FILES} - {name}


IMPORTS = {name: imports_of(name, path.read_text(encoding='utf-8'))
           for name, path in FILES.items()}


def room_of(name):
    """The room that a module lies in."""
    first, *rest = name.split('.')
    return f'gkd.{rest[0]}' if first == 'gkd' and rest else first


def circle(arrows):
    """Names along a circle of arrows, empty if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name):] + [name]
        if name in done:
            return []
        path.append(name)
        found = next(filter(None, map(visit, sorted(arrows[name]))), [])
        path.pop()
        done.add(name)
        return found

    return next(filter(None, map(visit, sorted(arrows))), [])


def test_a_circle_is_found():
    assert circle({'a': {'b'}, 'b': {'c', 'd'}, 'c': set(), 'd': {'a'}}) == ['a', 'b', 'd', 'a']
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(IMPORTS) == []


def test_no_folders_import_each_other_in_a_circle():
    folders = {}
    for name, modules in IMPORTS.items():
        for module in modules:
            pair = [each if FILES[each].name == '__init__.py' else each.rpartition('.')[0] or each
                    for each in (name, module)]
            # A package gathers what lies in its own folders.
            inside = any(one == other or one.startswith(f'{other}.')
                         for one, other in (pair, pair[::-1]))
            if FRONT not in pair and not inside:
                folders.setdefault(pair[0], set()).add(pair[1])
                folders.setdefault(pair[1], set())
    assert circle(folders) == []


def test_imports_go_down():
    unknown = {room_of(name) for name in FILES} - LEVELS.keys()
    assert not unknown, f'CONTRIBUTING.md has no place for {", ".join(sorted(unknown))}'
    up = [f'{name} imports {module}' for name, modules in IMPORTS.items() for module in modules
          if room_of(module) != room_of(name) and LEVELS[room_of(module)] <= LEVELS[room_of(name)]]
    assert up == []


# What the method is made of takes nothing from MMDetection but through the door.
BEHIND_THE_DOOR = ('gkd.distiller', 'gkd.detectors', 'gkd.knowledge', 'gkd.prototypes', 'gkd.bank',
                   'gkd.backbones', 'gkd.registry', 'gkd.progress', 'gkd.files')
FRAMEWORK = {'mmcv', 'mmdet', 'mmengine'}


def packages_of(text):
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition('.')[0])
    return found


def test_one_door_to_mmdetection():
    assert packages_of(FILES['gkd.frameworks.mmdet2'].read_text(encoding='utf-8')) & FRAMEWORK
    past_it = [name for name, path in FILES.items() if room_of(name) in BEHIND_THE_DOOR
               and packages_of(path.read_text(encoding='utf-8')) & FRAMEWORK]
    assert past_it == []


# Of what the package is made for, only torch is there.
WITHOUT_MMDETECTION = """
import sys
sys.modules.update(dict.fromkeys(['mmcv', 'mmdet', 'mmengine', 'cv2', 'tqdm', 'torchvision']))
"""


def run_without_mmdetection(code):
    return subprocess.run([sys.executable, '-c', WITHOUT_MMDETECTION + code], cwd=REPOSITORY,
                          capture_output=True, text=True)


def test_the_mathematics_needs_torch_alone():
    ended = run_without_mmdetection("""
import torch
from gkd.knowledge.instances import instance_mask, pool_instances
from gkd.knowledge.losses import global_knowledge_loss, local_knowledge_loss
from gkd.knowledge.similarities import robust_weights
from gkd.prototypes.pursuit import select_prototypes
from gkd.knowledge import soft_label_loss
from gkd.prototypes import PrototypeBank

maps = torch.rand(1, 8, 6, 6), torch.rand(1, 4, 6, 6)
boxes = [torch.tensor([[0., 0., 20., 20.], [8., 8., 40., 40.]])]
teacher, student = (pool_instances(feature, boxes, 1 / 8) for feature in maps)
rows = select_prototypes(teacher, student, num_prototypes=2)
bank = PrototypeBank([student[rows]], [teacher[rows]], [torch.tensor([0, 2])])
weights = robust_weights(student, teacher, bank.student[0], bank.teacher[0],
                         torch.zeros(2, dtype=torch.long), bank.offsets[0])
mask = instance_mask(boxes, [weights], 0, 1, 8, (6, 6))
print(global_knowledge_loss(student, teacher, bank.student[0], bank.teacher[0], weights),
      local_knowledge_loss(maps[0], maps[0], mask), soft_label_loss(student, student, weights))
""")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count('tensor(') == 4


def test_what_needs_mmdetection_says_so():
    ended = run_without_mmdetection("""
from importlib import import_module
import gkd
from gkd.errors import EnvironmentMismatchError

for package, name in (
        ('gkd', 'detectors'), ('gkd.detectors', 'DetectorPair'), ('gkd.knowledge', 'PKD'),
        ('gkd.prototypes', 'PrototypeHook'), ('gkd.compat.checkpoint', ''),
        ('gkd.frameworks', ''), ('gkd.distiller', ''), ('gkd.running', ''),
        ('gkd.comparison.compare', ''), ('gkd.report.runs', ''), ('gkd.looking.gallery', '')):
    try:
        found = import_module(package)
        if name:
            getattr(found, name)
        print(package, name, 'can be had')
    except EnvironmentMismatchError as error:
        assert str(error).startswith('mmcv is not installed. The shortest way:'), error
""")
    assert (ended.returncode, ended.stdout) == (0, ''), ended.stderr


def test_both_mmdetections_are_behind_the_same_door():
    """A name that only one has would break every import beside the other."""
    offered = []
    for version in (2, 3):
        text = FILES[f'gkd.frameworks.mmdet{version}'].read_text(encoding='utf-8')
        [names] = [ast.literal_eval(node.value) for node in ast.parse(text).body
                   if isinstance(node, ast.Assign) and node.targets[0].id == '__all__']
        offered.append(names)
    assert sorted(offered[0]) == sorted(offered[1])
