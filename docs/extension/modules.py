"""Pages of the API: one for each room that a method, a task or a reader of one's own builds on.

The orchestrator is a program: its pages are those of commands and fields.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
# Modules of a room itself are on its page; a room within it has a page of its own.
ROOMS = (
    "data",
    "data/recipes",
    "data/shards",
    "data/views",
    "methods/downstream",
    "methods/encoders",
    "methods/parts",
)
ALONE = ("methods/base.py", "methods/crops.py", "methods/clustering.py")


def pages() -> dict[str, str]:
    """Return the pages by their names."""
    found = {"api/methods": _page("methods", [ROOT / path for path in ALONE])}
    for room in ROOMS:
        found[f"api/{room.replace('/', '.')}"] = _page(room.replace("/", "."), sorted((ROOT / room).glob("*.py")))
    return found


def _page(room: str, paths: list[Path]) -> str:
    sections = []
    for path in paths:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name == "__init__.py":  # what it names is described where it is defined
            sections.insert(0, _directive(module.removesuffix(".__init__"), "   :no-members:\n"))
        else:
            sections.append(f"## {module}\n\n{_directive(module)}")
    return f"# {room}\n\n" + "\n".join(sections)


def _directive(module: str, options: str = "") -> str:
    return f"```{{eval-rst}}\n.. automodule:: {module}\n{options}```\n"
