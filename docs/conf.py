"""How Sphinx builds the site: bash tools/build_docs.sh."""

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import reference  # noqa: E402

import gkd  # noqa: E402

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
html_static_path = ['_static']
html_css_files = ['style.css']
html_js_files = ['messages.js']
html_copy_source = False
html_show_copyright = False
html_math_renderer = 'mathml'


def visit_math(translator, node):
    """Formulas as MathML, which browsers draw without a script from the network."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app):
    reference.write(DOCS / '_generated')
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
