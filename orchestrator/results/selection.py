"""Choose: find the runs that a person names by folders, an experiment, names and a kind."""

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.results.run_cards import Card, CardSource, Folders, members
from orchestrator.tracking.outbox import OUTBOX

KINDS = ("finetune", "pretrain", "trial")
GROUPS = ("table", "sweep")


@dataclass(frozen=True)
class RunChoice:
    """Runs to compare.

    cards   the runs; ``source`` also knows the runs that they belong to and start from
    folder  where comparisons of them are written
    group   the place of the table or sweep that was asked for, if it was one
    asked   the folders that were asked for, relative to ``folder``; empty: all of it
    """

    source: CardSource
    cards: tuple[Card, ...]
    title: str
    folder: Path
    group: str | None = None
    asked: tuple[str, ...] = ()


def in_folders(folders: Sequence[Path], home: Path, experiment: str | None = None) -> RunChoice:
    """Choose the runs in the given folders, else the runs of an experiment in a home.

    A folder may be that of a run, a table, a sweep or an experiment, or a home. Raises ValueError if one has no runs.
    """
    places = [folder.absolute() for folder in folders or [_experiment(home, experiment)]]
    for place in places:
        if not place.is_dir() or not any(place.rglob(OUTBOX)):
            raise ValueError(f"{place}: no runs there; give a folder that a run, a table or a sweep has written")
    source = Folders(sorted({_around(place) for place in places}))
    by_place = {card.place: card for card in source.cards()}
    chosen: dict[str, Card] = {}
    for place in places:
        rows = members(place)
        named = [replace(by_place[run], row=row) for run, row in rows.items() if run in by_place]
        below = [card for card in by_place.values() if _belongs(card, place) and card.place not in rows]
        chosen |= {card.place: card for card in [*named, *below]}
    around = _around(places[0])
    own = by_place.get(str(places[0])) if len(places) == 1 else None
    return RunChoice(
        source=source,
        cards=tuple(chosen.values()),
        title=own.name if own else around.name,
        folder=around,
        group=own.place if own and own.kind in GROUPS else None,
        asked=tuple(sorted(os.path.relpath(place, around) for place in places if place != around)),
    )


def select(choice: RunChoice, kind: str | None, names: Sequence[str]) -> tuple[str, list[Card]]:
    """Return the kind of run to compare (by default the kind that is judged) and its runs in order.

    ``names`` are patterns; a run is kept if its name, row or folder matches one of them. Raises ValueError, naming
    what there is, if no run is left.
    """
    everyone = {card.place: card for card in choice.source.cards()}
    kinds = [each for each in KINDS if any(card.kind == each for card in choice.cards)]
    if choice.group and everyone[choice.group].kind == "sweep":
        kinds.sort(key=lambda each: each != "trial")
    kind = kind or (kinds[0] if kinds else KINDS[0])
    of_kind = [_in_its_trial(card, everyone) for card in choice.cards if card.kind == kind]
    kept = [card for card in of_kind if not names or any(_matches(card, name) for name in names)]
    if not kept:
        there = sorted({card.row or card.name for card in of_kind}) or [f"runs of kind {' and '.join(kinds)}"]
        named = f" named {' or '.join(names)}" if names else ""
        raise ValueError(f"{choice.title}: no {kind} run{named}; there are: {', '.join(there)}")
    return kind, sorted(kept, key=lambda card: (counted(card.name), card.key))


def counted(name: str) -> list[tuple[bool, float | str]]:
    """Return a key that sorts names as people do: trial 2 before trial 10, lr 0.05 before lr 0.1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(number % 2 == 0, float(part) if number % 2 else part) for number, part in enumerate(parts)]


def _experiment(home: Path, experiment: str | None) -> Path:
    """Return the folder of an experiment in a home; if no experiment is named, of the only one there."""
    names = sorted({path.relative_to(home).parts[0] for path in home.glob(f"*/*/{OUTBOX}")})
    if not names:
        raise ValueError(f"--home {home}: no runs there; give the folder that runs were written to")
    if experiment is None and len(names) > 1:
        raise ValueError(
            f"--home {home} holds {len(names)} experiments; name one with --experiment: {', '.join(names)}"
        )
    if experiment is not None and experiment not in names:
        raise ValueError(f"--experiment {experiment}: no such experiment in {home}; there are: {', '.join(names)}")
    return home / (experiment or names[0])


def _around(place: Path) -> Path:
    """Return the folder whose runs belong together: the experiment folder of a run, a table or a sweep."""
    runs = [above for above in (place, *place.parents) if (above / OUTBOX).exists()]
    return runs[-1].parent if runs else place


def _belongs(card: Card, place: Path) -> bool:
    return Path(card.place).is_relative_to(place) or str(place) in card.parents


def _in_its_trial(card: Card, everyone: Mapping[str, Card]) -> Card:
    """Name a sweep's training after its trial; the trial also knows whether it was pruned."""
    trials = [everyone[place] for place in card.parents if place in everyone and everyone[place].kind == "trial"]
    if not trials:
        return card
    pruned = card.status == "stopped" and trials[0].status == "pruned"
    return replace(card, row=trials[0].name, status="pruned" if pruned else card.status)


def _matches(card: Card, pattern: str) -> bool:
    names = (card.name, card.row or "", Path(card.place).name)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
