"""``--cfg-options`` of the commands: settings on the command line, as KEY=VALUE."""

from __future__ import annotations

import argparse
from typing import Any

from gkd.installed import mmdet_major

if mmdet_major() == 3:
    from mmengine import config as framework
else:
    import mmcv as framework


class DictAction(argparse.Action):
    """KEY=VALUE, read as MMDetection does, but for three things.

    Blanks inside of text stay, as paths have them, and an option that is given twice keeps what
    the first one said of other keys. Text in double quotes is taken as it is, with its commas.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        """Read all KEY=VALUE of an option."""
        options = dict(getattr(namespace, self.dest, None) or {})
        for setting in values:
            key, sign, text = setting.partition('=')
            if not key.strip() or not sign:
                raise argparse.ArgumentError(self, f'{setting!r} is not KEY=VALUE')
            try:
                options[key] = value_of(text)
            except ValueError as error:
                raise argparse.ArgumentError(self, f'{" ".join(values)}: {error}') from None
        setattr(namespace, self.dest, options)


def value_of(text: str) -> Any:
    """The value that a text on the command line stands for.

    Args:
        text: A number, ``True``, ``False``, ``None`` or text; several with commas between them
            are a list, those in brackets a list or a tuple.

    Raises:
        ValueError: A bracket is not closed, or not opened.

    Example:
        >>> value_of('[(1, 0.5), my data/a.json]'), value_of('8,11'), value_of('"a,b"')
        ([(1, 0.5), 'my data/a.json'], [8, 11], 'a,b')
    """
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == '"' and text[1] not in '([':
        return text[1:-1]
    text = text.strip('\'"')
    parts = split(text)
    if len(parts) > 1 or text.endswith(','):
        return list(map(value_of, parts))
    kind = {'()': tuple, '[]': list}.get(text[:1] + text[-1:])
    if kind is not None:
        return kind(map(value_of, split(text[1:-1])))
    return framework.DictAction._parse_int_float_bool(text)


def split(text: str) -> list[str]:
    """The parts of a text between the commas that are not in brackets."""
    parts, depth = [''], 0
    for letter in text:
        depth += (letter in '([') - (letter in ')]')
        if depth < 0:
            break
        if letter == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    if depth:
        raise ValueError(f'imbalanced brackets in {text}; put text that has them between double '
                         f'quotes')
    return parts if parts[-1].strip() else parts[:-1]  # nothing behind the last comma


def add_settings_option(parser: argparse.ArgumentParser, *other_names: str) -> None:
    """Add ``--cfg-options``.

    Args:
        parser: Of the command.
        *other_names: Further names of the option.
    """
    parser.add_argument('--cfg-options', *other_names, nargs='+', action=DictAction,
                        metavar='KEY=VALUE',
                        help='replace settings of the config, such as optimizer.lr=0.01; '
                             'lists as 8,11 or [8,11]; text with commas as \'KEY="a,b"\'')
