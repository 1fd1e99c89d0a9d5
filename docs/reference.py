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

import gkd
from gkd import errors
from gkd.apis import finite, resume
from gkd.backbones import EfficientNetLite0
from gkd.detectors import Distiller
from gkd.detectors.source import DetectorSource
from gkd.knowledge.robust import GlobalKnowledge, LocalKnowledge, RobustDistillingModule, SoftLabel
from gkd.prototypes import PrototypeGenerationModule, PrototypeHook
from gkd.registry import KNOWLEDGE

ROOT = Path(__file__).parents[1]
# Arguments that the project fills in itself.
FILLED_IN = {'self', 'pair', 'key'}
# Which class takes the settings of which part of a config.
PLACES = {
    '`model`': Distiller,
    '`model.teacher`, `model.student`': DetectorSource,
    '`model.prototypes`': PrototypeGenerationModule,
    'In `model.knowledge`': RobustDistillingModule,
    '`global_knowledge`': GlobalKnowledge,
    '`local_knowledge`': LocalKnowledge,
    '`soft_label`': SoftLabel,
    **{f'In `model.knowledge`: {name}': kind for name, kind in KNOWLEDGE.module_dict.items()
       if kind is not RobustDistillingModule and kind.__module__.startswith('gkd.')},
    '`checkpoint_config`': resume.ResumableCheckpointHook,
    'In `custom_hooks`: losses': finite.FiniteLossHook,
    'In `custom_hooks`: prototypes': PrototypeHook,
    'A `backbone`': EfficientNetLite0,
}
ERRORS = [name for name, kind in vars(errors).items() if inspect.isclass(kind)]


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
        elif parameter.default is parameter.empty:
            found[name] = 'required' if kind is not DetectorSource or name == 'config' else ''
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
        found[name.strip()] = as_markdown(' '.join(meaning.split())).replace('|', r'\|')
    return found


def as_markdown(text):
    """Docstring markup as Markdown."""
    text = re.sub(r':math:`([^`]*)`', r'$\1$', text)
    text = re.sub(r':\w+:`~?(?:[\w.]*\.)?(\w+)`', r'`\1`', text)
    return text.replace('``', '`')


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
    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = stop
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
        module.parse_args()
    except Found as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args = original
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
    default = action.default
    if action.option_strings and 'default' not in meaning and \
            default not in (None, False, argparse.SUPPRESS):
        default = ' '.join(map(str, default)) if isinstance(default, (list, tuple)) else default
        meaning += f' (default: {default})'
    return '| ' + ' | '.join(' '.join(cell.replace('|', r'\|').split())
                             for cell in (names, meaning)) + ' |'


# --- Messages ------------------------------------------------------------------------------------

def messages():
    """Every message of an error type of the project, and every warning, as the code has them."""
    found = {name: {} for name in [*ERRORS, 'Warnings in the log', 'Setting up']}
    for path in sorted([*(ROOT / 'gkd').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]):
        module = Module(path)
        for node in ast.walk(module.tree):
            kind = raised(node)
            if kind is None:
                continue
            for text in module.texts(node.exc.args[0] if isinstance(node, ast.Raise)
                                     else node.args[0], node.lineno):
                if literal(text):
                    found.setdefault(kind, {}).setdefault(text, path.relative_to(ROOT))
    setup = ROOT / 'tools' / 'setup.sh'
    for text in re.findall(r'''fail (?:"((?:[^"\\]|\\.)*)"|'([^']*)')''', setup.read_text()):
        text = re.sub(r'\$\((?:[^()]|\([^()]*\))*\)|\$\{?\w+[^\s}]*\}?', '{…}', max(text))
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

    def __init__(self, path):
        self.tree = ast.parse(path.read_text())
        self.functions = {node.name: node for node in ast.walk(self.tree)
                          if isinstance(node, ast.FunctionDef)}
        self.constants = {target.id: node.value for node in self.tree.body
                          if isinstance(node, ast.Assign) for target in node.targets
                          if isinstance(target, ast.Name)}

    def texts(self, node, line=0, depth=0):
        """All texts that an expression can be, with what varies in braces."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.JoinedStr):
            found = ['']
            for part in node.values:
                ends = [part.value] if isinstance(part, ast.Constant) else \
                    self.values(part.value, line, depth)
                found = [start + end for start in found for end in ends]
            return found
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return [start + end for start in self.texts(node.left, line, depth)
                    for end in self.texts(node.right, line, depth)]
        if isinstance(node, ast.IfExp):
            return [*self.texts(node.body, line, depth), *self.texts(node.orelse, line, depth)]
        return self.values(node, line, depth)

    def values(self, node, line, depth):
        """Texts of a name or a call inside a message; a placeholder if it cannot be known."""
        if isinstance(node, ast.Name):
            if isinstance(self.constants.get(node.id), (ast.Constant, ast.BinOp, ast.JoinedStr)):
                return self.texts(self.constants[node.id], line, depth)
            assigned = self.assigned(node.id, line)
            if assigned is not None and depth < 3:
                return self.texts(assigned, line, depth + 1)
            return ['{' + node.id + '}']
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and depth < 3 and \
                node.func.id in self.functions:
            found = [text for inner in ast.walk(self.functions[node.func.id])
                     if isinstance(inner, ast.Return) and inner.value is not None
                     for text in self.texts(inner.value, inner.lineno, depth + 1)]
            found = [text for text in found if literal(text)]
            if found:
                return found
        if isinstance(node, ast.Attribute):
            return ['{' + node.attr + '}']
        return ['{…}']

    def assigned(self, name, line):
        """The text that a name was given in the function around a line."""
        around = [function for function in self.functions.values()
                  if function.lineno <= line <= function.end_lineno]
        for function in reversed(sorted(around, key=lambda function: function.lineno)):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and \
                        ast.unparse(node.targets[0]) == name and \
                        isinstance(node.value, (ast.JoinedStr, ast.BinOp)):
                    return node.value
        return None


# --- Modules -------------------------------------------------------------------------------------

def api():
    """A page for every package, with all its modules."""
    pages = {'api_gkd.rst': page('gkd', [
        module.name for module in pkgutil.iter_modules(gkd.__path__) if not module.ispkg])}
    for package in pkgutil.iter_modules(gkd.__path__):
        if package.ispkg:
            folder = str(Path(gkd.__path__[0]) / package.name)
            pages[f'api_{package.name}.rst'] = page(f'gkd.{package.name}', [
                module.name for module in pkgutil.iter_modules([folder])
                if module.name != '__main__'])
    return pages


def page(package, modules):
    """The page of a package."""
    parts = [heading(package, '='), f'.. automodule:: {package}\n']
    for name in modules:
        full = f'{package}.{name}'
        parts += [heading(full, '-'), f'.. automodule:: {full}\n   :members:\n']
    return '\n'.join(parts)


def heading(text, line):
    """A heading."""
    return f'{text}\n{line * len(text)}\n'
