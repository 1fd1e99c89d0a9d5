"""Self-contained HTML pages, with plotly, data and pictures inside."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Union

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from gkd.files import write_atomically


def write_page(path: Union[str, os.PathLike], template: str, **values: Any) -> None:
    """Fill in a template of this folder and write the page.

    Args:
        path: HTML file to write.
        template: File name of the template.
        **values: What it shows.

    Raises:
        StorageError: The file cannot be written.
    """
    environment = Environment(loader=PackageLoader('gkd.report', ''), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['plot'] = plot_data
    write_atomically(path, environment.get_template(template).render(
        made=time.strftime('%Y-%m-%d %H:%M'), plotly=get_plotlyjs(), **values))


def plot_data(plot: go.Figure) -> Any:
    """A figure as plain JSON values."""
    return json.loads(plot.to_json())
