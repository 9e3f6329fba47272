"""The documentation site: `make docs` builds it into build/site. No page asks a network for anything."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project, author = "Raydiology", "The Raydiology authors"
copyright = author
version = release = version_of("raydiology")

extensions = ["myst_parser", "sphinx.ext.autodoc", "extension.setup"]
exclude_patterns = ["extension"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
highlight_language = "none"
smartquotes = False  # options begin with two hyphens

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
autodoc_typehints = "signature"

html_theme = "furo"
html_math_renderer = "mathml"  # which browsers draw by themselves; MathJax would be fetched
html_title = "Raydiology"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
# The search index lists every word of every page; without it the site has no search, so it stays.
html_search_language = "en"
