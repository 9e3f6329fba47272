"""Pages of the fields of every file that people write: read from the models that validate them."""

import inspect
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from data.recipes import RECIPES
from data.recipes.recipe import Recipe
from extension import markup
from extension.words import UNITS, WORDS
from methods import METHODS
from methods.downstream import TASKS
from methods.encoders import ENCODERS
from orchestrator.commands.parser import commands
from orchestrator.config.experiment import Experiment
from orchestrator.ingest.request import IngestConfig
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.tables.cohort import Cohort
from orchestrator.tables.grid import TableConfig

Model = type[BaseModel]
# Page, title, what it is about, and the models whose fields it has: each with all models that its fields hold.
REGISTRIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "methods": ("Methods", "`method: {name: NAME, ...}` of an experiment or a stage.", METHODS),
    "encoders": ("Encoders", "`encoder: {name: NAME, ...}` of an experiment or a stage.", ENCODERS),
    "tasks": ("Downstream tasks", "`downstream.task: {name: NAME, ...}` of an experiment.", TASKS),
}
FILES: dict[str, tuple[str, str, tuple[Model, ...]]] = {
    "experiment": ("An experiment's file", "What `pretrain`, `finetune` and `probe` read.", (Experiment,)),
    "table": ("A table's file", "What `table` reads, and the cohorts that it names.", (TableConfig, Cohort)),
    "sweep": ("A sweep's file", "What `sweep` reads.", (SweepConfig,)),
    "ingest": ("An ingest's file", "What `ingest` reads under `--config`.", (IngestConfig, Recipe)),
}
_HEAD = "| field | type | default | unit | what it is |\n|---|---|---|---|---|"
_BOUNDS = {Gt: ("gt", "> {}"), Ge: ("ge", "≥ {}"), Lt: ("lt", "< {}"), Le: ("le", "≤ {}"),
           MinLen: ("min_length", "at least {}"), MaxLen: ("max_length", "at most {}")}  # fmt: skip
_SIMPLE = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value", NoneType: "none"}


def pages() -> dict[str, str]:
    """Return the pages by their names."""
    places: dict[Model, str] = {}
    for page, (_, _, registry) in REGISTRIES.items():
        for kind in registry.values():
            for model in models_of(kind.Config):
                places.setdefault(model, page)
    for page, (_, _, roots) in FILES.items():
        for root in roots:
            for model in models_of(root):
                places.setdefault(model, page)
    found = {}
    for page, (title, about, registry) in REGISTRIES.items():
        named = {kind.Config: _registered(name, kind) for name, kind in registry.items()}
        found[f"fields/{page}"] = _page(page, title, about, places, named)
    for page, (title, about, _) in FILES.items():
        text = _page(page, title, about, places, {})
        found[f"fields/{page}"] = text + (_recipes() if page == "ingest" else "")
    return found


def models_of(model: Model) -> list[Model]:
    """Return a model and all models that its fields hold, each once, outermost first."""
    found: list[Model] = []

    def visit(one: Model) -> None:
        if one not in found:
            found.append(one)
            for field in one.model_fields.values():
                for inner in _models_in(field.annotation):
                    visit(inner)

    visit(model)
    return found


def _models_in(annotation: Any) -> Iterator[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def title_of(model: Model) -> str:
    """Return what a model is called on its page: the class, or the one that it is the config of."""
    return model.__qualname__.removesuffix(".Config")


def _page(page: str, title: str, about: str, places: Mapping[Model, str], named: Mapping[Model, str]) -> str:
    sections = [f"# {title}\n\n{about}\n"]
    for model, place in places.items():
        if place == page:
            heading = named.get(model) or f"## {title_of(model)}\n\n{_prose(model)}\n"
            sections.append(f"({anchor_of(model)})=\n\n{heading}\n{_table(model, places)}\n")
    return "\n".join(sections)


def _registered(name: str, kind: Any) -> str:
    """Return the heading of a method, encoder or task, with the docstring of its file: paper, reference, variants."""
    module = inspect.getmodule(kind)
    lines = markup.restructured(inspect.cleandoc((module.__doc__ if module else None) or "").splitlines())
    return f"## {name}\n\n```{{eval-rst}}\n" + "\n".join(lines) + "\n```\n"


def _prose(model: Model) -> str:
    """Return a docstring up to the list of its fields."""
    first, *_ = inspect.cleandoc(model.__doc__ or "").split("\n\n")
    return _markdown(first) if model.__doc__ and not model.__doc__.startswith("!!!") else ""


def _table(model: Model, places: Mapping[Model, str]) -> str:
    module = inspect.getmodule(model)
    documented = [module, *reversed(model.__mro__)] if model.__name__ == "Config" else [*reversed(model.__mro__)]
    said = {name: text for one in documented for name, text in markup.terms(one.__doc__ or "").items()}
    rows = [
        f"| `{name}` | {_type(field.annotation, places)}{_bounds(field)} | {_default(field)} | {_unit(name)} "
        f"| {_cell(said.get(name) or explained(model, name))} |"
        for name, field in shown(model).items()
    ]
    return "\n".join([_HEAD, *rows]) if rows else "It has no fields.\n"


def shown(model: Model) -> dict[str, FieldInfo]:
    """Return a model's fields but that which names its kind, as a method's ``name`` does."""
    kind = model.model_fields.get("name")
    only = kind is not None and get_origin(kind.annotation) is Literal and len(get_args(kind.annotation)) == 1
    return {name: field for name, field in model.model_fields.items() if name != "name" or not only}


def explained(model: Model, name: str) -> str:
    """Return what is said of a field outside of a list: in its class's prose, in a command's help, or in words.py."""
    for kind in model.__mro__:
        sentences = re.split(r"(?<=[.]) ", " ".join(inspect.cleandoc(kind.__doc__ or "").split()))
        if about := [one for one in sentences if re.search(rf"``{name}``", one)]:
            return " ".join(about)
    if model.__module__.startswith(("data.sources", "orchestrator.ingest")):
        options = {option.name: option.help for option in commands()["ingest"].params}
        if helped := options.get(name):
            return re.sub(r" \(default: .*?\)", "", helped)
    return WORDS.get(f"{title_of(model)}.{name}") or WORDS.get(name, "")


def _type(annotation: Any, places: Mapping[Model, str]) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], places)
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in inner)
    if origin in (Union, UnionType):
        kinds = [one for one in inner if one is not NoneType]
        pages = {places.get(model) for one in kinds for model in [*_models_in(one)][:1]}
        if len(kinds) > 3 and len(pages) == 1 and (page := pages.pop()) in REGISTRIES:
            return f"one of the [{page}]({page}.md)"
        return " or ".join(dict.fromkeys(_type(one, places) for one in inner if one is not NoneType))
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"list of {_type(inner[0], places)}"
        return f"[{', '.join(_type(one, places) for one in inner)}]"
    if origin in (list, frozenset, set):
        return f"list of {_type(inner[0], places)}"
    if origin is dict:
        return f"mapping of {_type(inner[1], places)}"
    if annotation in places:
        return f"[{title_of(annotation)}](#{anchor_of(annotation)})"
    return _SIMPLE.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(field: FieldInfo) -> str:
    known = [(bound, *_BOUNDS[type(bound)]) for bound in field.metadata if type(bound) in _BOUNDS]
    told = [words.format(getattr(bound, name)) for bound, name, words in known]
    return f", {' and '.join(told)}" if told else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        given = value.model_dump(mode="json", exclude_unset=True)
        return f"`{_yaml(given)}`" if given else "its own defaults"
    if value is None:
        return "none"
    return f"`{_yaml(to_jsonable_python(value))}`"


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.replace("\n...", "").strip()


def _unit(name: str) -> str:
    return next((unit for pattern, unit in UNITS if re.search(pattern, name)), "")


def anchor_of(model: Model) -> str:
    """Return the name by which links find a model's section."""
    return f"fields-{model.__module__}-{model.__qualname__}".replace(".", "-").replace("_", "-").lower()


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _recipes() -> str:
    """Return the named recipes, each with the fields that differ from a recipe's defaults."""
    rows = [
        f"| `{name}` | {recipe.modality or 'any'} | "
        f"`{_yaml(recipe.model_dump(mode='json', exclude_defaults=True, exclude={'name', 'modality'}))}` |"
        for name, recipe in RECIPES.items()
    ]
    return "\n## Recipes\n\n| recipe | modality | fields |\n|---|---|---|\n" + "\n".join(rows) + "\n"
