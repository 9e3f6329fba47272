"""Cohorts of phantoms by their kind: what a command or a table's stand-in writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

Kind = Literal["abdomen", "brain", "fundus", "chest", "nodules", "photographs"]


def write(kind: Kind, folder: str | Path, labelled: int, unlabelled: int, seed: int = 0) -> None:
    """Write patients of a kind, those with labels first; the same arguments give the same bytes."""
    from data.phantoms.abdomen import write_cohort
    from data.phantoms.brain import write_brains
    from data.phantoms.nodules import write_candidates
    from data.phantoms.photographs import write_photographs
    from data.phantoms.pictures import write_films, write_fundus

    writers: dict[Kind, Callable[..., object]] = {
        "abdomen": write_cohort,
        "brain": write_brains,
        "fundus": write_fundus,
        "chest": write_films,
        "nodules": write_candidates,
        "photographs": write_photographs,
    }
    writers[kind](folder, labelled, unlabelled, seed=seed)
