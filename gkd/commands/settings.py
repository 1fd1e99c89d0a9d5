"""``--cfg-options`` of the commands: settings on the command line, as KEY=VALUE."""

from __future__ import annotations

import argparse

from gkd.installed import mmdet_major

if mmdet_major() == 3:
    from mmengine import config as framework
else:
    import mmcv as framework


class DictAction(framework.DictAction):
    """MMDetection's KEY=VALUE; text in double quotes is taken as it is, with commas and blanks."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Read all KEY=VALUE of an option."""
        for value in values:
            if not value.partition('=')[0].strip() or '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r} is not KEY=VALUE')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, IndexError) as error:
            raise argparse.ArgumentError(self, f'{" ".join(values)}: {error}') from None

    @staticmethod
    def _parse_iterable(val: str):
        quoted = len(val) > 2 and val[0] == val[-1] == '"' and val[1] not in '(['
        return val[1:-1] if quoted else framework.DictAction._parse_iterable(val)


def add_settings_option(parser: argparse.ArgumentParser, *other_names: str) -> None:
    """Add ``--cfg-options``.

    Args:
        parser: Of the command.
        *other_names: Further names of the option.
    """
    parser.add_argument('--cfg-options', *other_names, nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='replace settings of the config')
