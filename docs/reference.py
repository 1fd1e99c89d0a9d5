"""What the site lists from the code itself: config keys, commands, messages, modules."""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

from mmcv.runner import HOOKS, LoggerHook

import gkd
from gkd import errors
from gkd.backbones import EfficientNetLite0
from gkd.detectors.source import DetectorSource
from gkd.distiller import Distiller
from gkd.knowledge.class_space import ClassSpaceKnowledge
from gkd.knowledge.global_knowledge import GlobalKnowledge
from gkd.knowledge.local_knowledge import LocalKnowledge
from gkd.knowledge.robust import RobustDistillingModule
from gkd.knowledge.soft_label import SoftLabel
from gkd.prototypes import PrototypeGenerationModule
from gkd.registry import KNOWLEDGE
from gkd.running.resume import ResumableCheckpointHook

ROOT = Path(__file__).parents[1]
# These import MMDetection 3; the site is made with 2.
ELSEWHERE = ('gkd.comparison.mmdet3', 'gkd.compat.coco_metric', 'gkd.compat.engine',
             'gkd.engine', 'gkd.frameworks.mmdet3', 'gkd.looking.mmdet3',
             'gkd.planning.mmdet3', 'gkd.recipes.mmdet3')
for found in pkgutil.walk_packages(gkd.__path__, 'gkd.'):
    if not found.name.endswith('__main__') and found.name not in ELSEWHERE:
        importlib.import_module(found.name)  # registers what it has
# Arguments that the project fills in itself.
FILLED_IN = {'self', 'pair', 'key'}
# They are the parser's, not the constructor's.
SOURCE_DEFAULTS = {'config': 'required', 'checkpoint': '`None`; required for the teacher',
                   'overrides': '`{}`', 'precision': '`None`', 'graphs': '`0`',
                   'img_norm_cfg': '`None`', 'inherit': '`()`', 'classes': '`None`'}
# Which class takes the settings of which part of a config.
PLACES = {
    '`model`': Distiller,
    '`model.teacher`, `model.student`': DetectorSource,
    '`model.prototypes`': PrototypeGenerationModule,
    'In `model.knowledge`': RobustDistillingModule,
    '`global_knowledge`': GlobalKnowledge,
    '`global_knowledge` with `space=\'classes\'`': ClassSpaceKnowledge,
    '`local_knowledge`': LocalKnowledge,
    '`soft_label`': SoftLabel,
    **{f'In `model.knowledge`: {name}': kind for name, kind in KNOWLEDGE.module_dict.items()
       if kind is not RobustDistillingModule and kind.__module__.startswith('gkd.')},
    '`checkpoint_config`': ResumableCheckpointHook,
    **{('In `log_config.hooks`' if issubclass(hook, LoggerHook) else 'In `custom_hooks`')
       + f': {name}': hook for name, hook in HOOKS.module_dict.items()
       if hook is not ResumableCheckpointHook and hook.__module__.startswith('gkd.')},
    'A `backbone`': EfficientNetLite0,
}
# When taking messages apart ends: functions inside of functions, texts of one message.
DEEP, MANY = 4, 40
ERRORS = [name for name, kind in vars(errors).items()
          if inspect.isclass(kind) and issubclass(kind, errors.GKDError)]


def write(folder):
    """Write all lists; a file that would not change is left alone, so that Sphinx is quick."""
    texts = {'config_keys.inc.md': config_keys(), 'commands.inc.md': commands(),
             'messages.inc.md': messages(), **api()}
    folder.mkdir(exist_ok=True)
    for old in set(path.name for path in folder.iterdir()) - texts.keys():
        (folder / old).unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


# --- Config keys ---------------------------------------------------------------------------------

def config_keys():
    """A table for each class that a config sets up."""
    parts = []
    for place, kind in PLACES.items():
        if not arguments(kind):
            continue
        described = descriptions(kind)
        rows = [f'| `{name}` | {default} | {described[name]} |'
                for name, default in arguments(kind).items()]
        summary = as_markdown(inspect.getdoc(kind).split('\n\n')[0])
        title = place if kind is DetectorSource else f'{place}: `{kind.__name__}`'
        title = title.replace(f': {kind.__name__}:', ':')
        parts.append(f'### {title}\n\n{summary}\n\n| key | default | what it does |\n'
                     '| --- | --- | --- |\n' + '\n'.join(rows) + '\n')
    return '\n'.join(parts)


def arguments(kind):
    """Defaults of a class's arguments by name, as they are written."""
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in FILLED_IN:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            found[f'**{name}'] = ''
        elif kind is DetectorSource:
            found[name] = SOURCE_DEFAULTS[name]
        elif parameter.default is parameter.empty:
            found[name] = 'required'
        else:
            value = parameter.default
            shown = dict(value) if hasattr(value, 'items') else value
            found[name] = f'`{shown!r}`'
    return found


def descriptions(kind):
    """What a class's docstring says of its arguments, or of its fields."""
    text = inspect.getdoc(kind)
    section = re.search(r'^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)', text, re.MULTILINE)
    entries = re.split(r'^ {4}(?=\S)', section[1], flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        name, meaning = entry.split(':', 1)
        found[name.strip()] = as_markdown(' '.join(meaning.split()))
    return found


def as_markdown(text):
    """Docstring markup as Markdown."""
    text = re.sub(r':math:`([^`]*)`', r'$\1$', text)
    text = re.sub(r':\w+:`~?(?:[\w.]*\.)?(\w+)`', r'`\1`', text)
    return as_text(text.replace('``', '`'))


def as_text(text):
    """Text of a table's cell, in which only code and formulas are marked up."""
    parts = re.split(r'(`[^`]*`|\$[^$]*\$)', text)
    parts[::2] = [re.sub(r'([*_<>])', r'\\\1', part) for part in parts[::2]]
    return ''.join(parts).replace('|', r'\|')


# --- Commands ------------------------------------------------------------------------------------

def commands():
    """The help of every command, and tables of options."""
    parts = []
    for path in sorted((ROOT / 'tools').iterdir()):
        if path.suffix == '.sh' and path.name != 'launch.sh':
            usage = subprocess.run(['bash', path, '--help'], capture_output=True, text=True,
                                   check=True).stdout
            parts.append(f'## tools/{path.name}\n\n```text\n{usage.strip()}\n```\n')
        elif path.suffix == '.py' and 'argparse' in path.read_text():
            parser = parser_of(path)
            description = ' '.join((parser.description or '').split())
            rows = [describe_option(parser, action) for holder in [parser, *subparsers(parser)]
                    for action in holder._actions if action.help != argparse.SUPPRESS and
                    not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))]
            parts.append(f'## tools/{path.name}\n\n{description}\n\n| argument | meaning |\n'
                         '| --- | --- |\n' + '\n'.join(dict.fromkeys(rows)) + '\n')
    return '\n'.join(parts)


class Found(Exception):
    """Carries a parser out of the tool that has made it."""


def parser_of(path):
    """The parser of a tool's command line."""
    def stop(parser, *args, **kwargs):
        raise Found(parser)

    spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    names = ('parse_args', 'parse_known_args')
    originals = [getattr(argparse.ArgumentParser, name) for name in names]
    for name in names:
        setattr(argparse.ArgumentParser, name, stop)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
        module.parse_args()
    except Found as found:
        return found.args[0]
    finally:
        for name, original in zip(names, originals):
            setattr(argparse.ArgumentParser, name, original)
        sys.path[:] = before
    raise LookupError(f'{path} parses no arguments')


def subparsers(parser):
    """Parsers of a command's commands."""
    return [inner for action in parser._actions if isinstance(action, argparse._SubParsersAction)
            for inner in action.choices.values()]


def describe_option(parser, action):
    """A row of the table."""
    names = ', '.join(f'`{name}`' for name in action.option_strings)
    if not names:
        names = f'`{action.metavar or action.dest}`'
    elif action.nargs != 0:
        values = action.metavar or ('{' + ','.join(map(str, action.choices)) + '}'
                                    if action.choices else action.dest.upper())
        names += f' `{" ".join(values) if isinstance(values, tuple) else values}`'
    meaning = (action.help or '') % dict(vars(action), prog=parser.prog)
    meaning = meaning.replace(f'{ROOT}/', '')
    default = action.default
    if action.option_strings and 'default' not in meaning and \
            default not in (None, False, argparse.SUPPRESS):
        default = ' '.join(map(str, default)) if isinstance(default, (list, tuple)) else default
        meaning += f' (default: {default})'
    return f'| {as_text(names)} | {as_text(" ".join(meaning.split()))} |'


# --- Messages ------------------------------------------------------------------------------------

def messages():
    """Every message of an error type of the project, and every warning, as the code has them."""
    found = {name: {} for name in [*ERRORS, 'Warnings in the log', 'Setting up']}
    paths = sorted([*(ROOT / 'gkd').rglob('*.py'), *(ROOT / 'tools').glob('*.py')])
    for path, module in [(path, Module(path)) for path in paths]:
        for node in ast.walk(module.tree):
            kind = raised(node)
            if kind is None:
                continue
            for text in module.texts(node.exc.args[0] if isinstance(node, ast.Raise)
                                     else node.args[0], node.lineno):
                if literal(text):
                    found.setdefault(kind, {}).setdefault(text, path.relative_to(ROOT))
    setup = ROOT / 'tools' / 'setup.sh'
    inner = r'\$\((?:[^()]|\([^()]*\))*\)'  # a command whose output is put in
    for text in re.findall(rf'''fail (?:"((?:{inner}|[^"\\]|\\.)*)"|'([^']*)')''',
                           setup.read_text()):
        text = re.sub(rf'{inner}|\$\{{[^{{}}]*\}}|\$\w+', '{…}', max(text))
        found['Setting up'].setdefault(text, setup.relative_to(ROOT))
    parts = []
    for kind, texts in found.items():
        if texts:
            parts.append(f'### {kind}\n\n{about(kind)}')
            parts += [f'```{{code-block}} text\n:class: message\n:caption: {path}\n\n'
                      f'{text.strip()}\n```' for text, path in sorted(texts.items())]
    return '\n\n'.join(parts) + '\n'


def about(kind):
    """What a type of error stands for."""
    special = {'Setting up': 'What `tools/setup.sh` ends with.',
               'Warnings in the log': 'The run goes on.',
               'StageFailed': 'A step of the quickstart or of a comparison failed.',
               'RecipeError': 'What `tools/check_recipes.py` ends with.'}
    return special[kind] if kind in special else inspect.getdoc(getattr(errors, kind))


def raised(node):
    """Type of the project's error that a statement raises; None for other statements."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        name = ast.unparse(node.exc.func)
        return name if name in [*ERRORS, 'StageFailed', 'RecipeError'] else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and \
            node.func.attr == 'warning' and node.args:
        return 'Warnings in the log'
    return None


def literal(text):
    """The part of a message that is always the same."""
    return re.sub(r'\{[^{}]*\}', ' ', text).strip(' .:\n')


class Module:
    """A source file, to find out what expressions in it can say."""

    # By name, of all files: messages are put together by functions from elsewhere, too.
    functions = {}

    def __init__(self, path):
        self.tree = ast.parse(path.read_text())
        self.own = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
        self.constants = {target.id: node.value for node in self.tree.body
                          if isinstance(node, ast.Assign) for target in node.targets
                          if isinstance(target, ast.Name)}
        for function in self.own:
            Module.functions.setdefault(function.name, (self, function))

    def texts(self, node, line, depth=0):
        """All texts that an expression can be, with what varies in braces.

        Args:
            node: The expression.
            line: Where it stands, to tell in which function.
            depth: How many functions have been looked into.
        """
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.JoinedStr):
            return self.joined(node.values, '', line, depth)
        if isinstance(node, ast.FormattedValue):
            return self.texts(node.value, line, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and not \
                isinstance(getattr(node.right, 'value', ''), int):
            return self.joined([node.left, node.right], '', line, depth)
        if isinstance(node, ast.IfExp):
            return [*self.texts(node.body, line, depth), *self.texts(node.orelse, line, depth)]
        if isinstance(node, ast.Attribute):
            return ['{' + node.attr + '}']
        if isinstance(node, ast.Name):
            value = self.value_of(node.id, line) if depth < DEEP else None
            return self.texts(value, line, depth + 1) if value else ['{' + node.id + '}']
        if isinstance(node, ast.Call) and depth < DEEP:
            return self.called(node, line, depth) or ['{…}']
        return ['{…}']

    def joined(self, nodes, between, line, depth):
        """Texts of several expressions, one after the other."""
        found = ['']
        for number, node in enumerate(nodes):
            found = [start + (between if number else '') + end for start in found
                     for end in self.texts(node, line, depth)]
        return found if len(found) <= MANY else ['{…}']

    def called(self, node, line, depth):
        """Texts that a function of the project returns, or that a list is joined to."""
        if isinstance(node.func, ast.Attribute) and node.func.attr == 'join' and \
                isinstance(node.args[0], ast.Name) and isinstance(node.func.value, ast.Constant):
            lines = self.value_of(node.args[0].id, line)
            if isinstance(lines, ast.List):
                return self.joined(lines.elts, node.func.value.value, line, depth)
        if not isinstance(node.func, ast.Name) or node.func.id not in self.functions:
            return []
        module, function = self.functions[node.func.id]
        found = [text for inner in ast.walk(function)
                 if isinstance(inner, ast.Return) and inner.value is not None
                 for text in module.texts(inner.value, inner.lineno, depth + 1)]
        return [text for text in found if literal(text)]

    def value_of(self, name, line):
        """The text or list that a name was first given in the function around a line, or above."""
        around = [function for function in self.own
                  if function.lineno <= line <= function.end_lineno]
        given = [(node.lineno, node.value) for function in around for node in ast.walk(function)
                 if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
        value = min(given, key=lambda pair: pair[0])[1] if given else self.constants.get(name)
        texts = (ast.JoinedStr, ast.BinOp, ast.List) if given else (ast.JoinedStr, ast.BinOp,
                                                                   ast.Constant)
        return value if isinstance(value, texts) else None


# --- Modules -------------------------------------------------------------------------------------

def api():
    """A page for every package, with all its modules."""
    pages = {'api_gkd.rst': page('gkd', [
        module.name for module in pkgutil.iter_modules(gkd.__path__) if not module.ispkg])}
    for package in pkgutil.iter_modules(gkd.__path__):
        if package.ispkg and f'gkd.{package.name}' not in ELSEWHERE:
            folder = str(Path(gkd.__path__[0]) / package.name)
            prefix = f'gkd.{package.name}.'
            pages[f'api_{package.name}.rst'] = page(f'gkd.{package.name}', [
                module.name[len(prefix):] for module in pkgutil.walk_packages([folder], prefix)
                if not module.name.endswith('__main__') and module.name not in ELSEWHERE])
    return pages


def page(package, modules):
    """The page of a package."""
    parts = [heading(package, '='), f'.. automodule:: {package}\n']
    for name in modules:
        full = f'{package}.{name}'
        # What a file only hands on is described where it is written.
        options = '   :members:\n   :ignore-module-all:\n'
        parts += [heading(full, '-'), f'.. automodule:: {full}\n{options}']
    return '\n'.join(parts)


def heading(text, line):
    """A heading."""
    return f'{text}\n{line * len(text)}\n'
