"""Files and folders import downwards only, in the order that CONTRIBUTING.md tells."""

import ast

import pytest
from helpers.running import REPOSITORY

# The order of the rooms, top first: what is in one line does not import each other.
WRITTEN = (REPOSITORY / 'CONTRIBUTING.md').read_text(encoding='utf-8')
LINES = WRITTEN.split('```text\n')[1].split('```')[0].splitlines()
LEVELS = {place.replace('/__init__.py', '').replace('.py', '').strip('/').replace('/', '.'): number
          for number, line in enumerate(LINES) for place in line.split('  ')[0].split()}
# Any import of a module inside gkd runs `gkd/__init__.py`, which knows the rooms below it.
FRONT = 'gkd'
OPEN = pytest.mark.xfail(strict=True, reason='detectors, knowledge, prototypes: not in order yet')


def name_of(path):
    """Dotted name of a file."""
    parts = path.relative_to(REPOSITORY).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {name_of(path): path for folder in ('gkd', 'studies', 'tools', 'benchmarks')
         for path in sorted((REPOSITORY / folder).rglob('*.py')) if '.mim' not in path.parts}


def imports_of(name, text):
    """Modules of the project that a file imports, inside of functions too."""
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


@OPEN
def test_no_files_import_each_other_in_a_circle():
    assert circle(IMPORTS) == []


@OPEN
def test_no_folders_import_each_other_in_a_circle():
    folders = {}
    for name, modules in IMPORTS.items():
        for module in modules:
            pair = [each if FILES[each].name == '__init__.py' else each.rpartition('.')[0] or each
                    for each in (name, module)]
            if FRONT not in pair and pair[0] != pair[1]:
                folders.setdefault(pair[0], set()).add(pair[1])
                folders.setdefault(pair[1], set())
    assert circle(folders) == []


@OPEN
def test_imports_go_down():
    unknown = {room_of(name) for name in FILES} - LEVELS.keys()
    assert not unknown, f'CONTRIBUTING.md has no place for {", ".join(sorted(unknown))}'
    up = [f'{name} imports {module}' for name, modules in IMPORTS.items() for module in modules
          if room_of(module) != room_of(name) and LEVELS[room_of(module)] <= LEVELS[room_of(name)]]
    assert up == []
