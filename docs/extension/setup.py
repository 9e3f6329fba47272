"""What Sphinx calls: pages are written before it reads any, and docstrings are turned into its markup."""

import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from extension import commands, fields, markup, modules

GENERATED = "generated"


def setup(app: Any) -> dict[str, Any]:
    """Write the generated pages, and have autodoc read docstrings as this project writes them."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference" / GENERATED))
    app.connect("autodoc-process-docstring", _as_markup)
    app.add_html_math_renderer("mathml", inline_renderers=(_formula, None), block_renderers=(_formula, None))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """Write all generated pages into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in {**fields.pages(), **commands.pages(), **modules.pages()}.items():
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _as_markup(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = markup.restructured(lines)


def _formula(translator: Any, node: Any) -> None:
    """Write a formula as MathML."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode
