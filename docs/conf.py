"""How Sphinx builds the site: bash tools/build_docs.sh."""

import sys
from pathlib import Path

import gkd  # isort: skip  (before anything imports mmcv)
from docutils import nodes
from docutils.utils.math import math2html
from docutils.writers import html5_polyglot

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import reference  # noqa: E402

project = 'gkd'
version = release = gkd.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build', '_generated/*.inc.md']

myst_enable_extensions = ['attrs_block', 'attrs_inline', 'deflist', 'dollarmath']
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
napoleon_use_ivar = True
python_maximum_signature_line_length = 80

html_theme = 'furo'
html_title = f'gkd {release}'
# docutils' style for its formulas lies beside its writer.
html_static_path = ['_static', str(Path(html5_polyglot.__file__).with_name('math.css'))]
html_css_files = ['math.css', 'style.css']
html_js_files = ['messages.js']
html_copy_source = False
html_show_copyright = False
html_math_renderer = 'plain'


def visit_math(translator, node):
    """Formulas as HTML: scripts for them come from the network, MathML needs a special font."""
    math2html.DocumentParameters.displaymode = isinstance(node, nodes.math_block)
    tag = 'div' if isinstance(node, nodes.math_block) else 'span'
    formula = math2html.math2html(node.astext())
    translator.body.append(f'<{tag} class="formula">{formula}</{tag}>')
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx: what the pages include is made from the code."""
    reference.write(DOCS / '_generated')
    app.add_html_math_renderer('plain', (visit_math, None), (visit_math, None))
