"""The splits of an ingest: which patients train, validate and test, by the source, by what was written, or drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data.quarantine import BadStudy
from data.sources import Study
from data.splits import assign_splits
from orchestrator.ingest.request import IngestConfig

TORN = BadStudy(
    "a study of a patient who is in two splits",
    "one split for each patient, or what was learnt from a patient is judged by the same patient",
    "correct the split in the source, or ignore a table's own splits by --split-column ''",
)


def split_patients(
    studies: Sequence[Study], config: IngestConfig, earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the split of each patient: the layout's if it names one, else drawn by fractions.

    A split that the layout gives to labelled patients is not drawn; the other splits are drawn from its training
    split too. If some patients have labels, all patients without labels train, because they could not be scored.
    Classes are spread evenly. ``earlier`` are the splits of patients that were written before: they stay, and the
    others are drawn so that the fractions hold for all.
    """
    earlier = earlier or {}
    given = {study.patient: study.split for study in studies if study.split is not None and study.fault is not TORN}
    strata = _strata(studies)
    scored = {patient for patient, stratum in strata.items() if stratum is not None} or set(strata)
    held = {given[patient] for patient in scored if patient in given}
    val = 0.0 if "val" in held else config.val_fraction
    test = 0.0 if "test" in held else config.test_fraction
    pool = {patient: str(strata[patient]) for patient in scored if given.get(patient, "train") == "train"}
    counts = Counter(earlier[patient] for patient in pool if patient in earlier)
    new = {patient: stratum for patient, stratum in pool.items() if patient not in earlier}
    drawn = assign_splits(new, val, test, config.seed, counts)
    return dict.fromkeys(strata, "train") | given | drawn | dict(earlier)


def without_leaks(studies: Sequence[Study]) -> list[Study]:
    """Return the studies; all those of a patient whom the source lays into two splits are bad."""
    splits: dict[str, set[str]] = {}
    for study in studies:
        if study.split is not None:
            splits.setdefault(study.patient, set()).add(study.split)
    return [
        replace(study, fault=study.fault or TORN) if len(splits.get(study.patient, ())) > 1 else study
        for study in studies
    ]


def _strata(studies: Sequence[Study]) -> dict[str, str | None]:
    """Map each patient to the stratum that is spread over the splits; None for a patient without labels.

    The stratum is the patient's class that the fewest patients have (of two such classes, the higher), "no class" for
    an empty list of classes, or "label" for a label map.
    """
    classes: dict[str, set[int]] = {}
    strata: dict[str, str | None] = {}
    for study in studies:
        if study.classes is not None:
            classes.setdefault(study.patient, set()).update(study.classes)
        labelled = study.label or strata.get(study.patient)
        strata[study.patient] = "label" if labelled else None
    num_patients = Counter(number for numbers in classes.values() for number in numbers)
    for patient, numbers in classes.items():
        rarest = min(numbers, key=lambda number: (num_patients[number], -number), default=None)
        strata[patient] = "no class" if rarest is None else f"class {rarest:06d}"
    return strata
