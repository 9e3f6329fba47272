"""Columns: which columns of a table name the image file, the classes, a box, the patient and the split.

Options name a column, whatever its case. The columns of patients and splits need no option if they have the usual
names of public tables: ``patient``, ``Patient ID``, ``subject_id``, ``split``, ``Partition`` and the like. A column
holds splits if it is called ``split`` or ``partition``, or if any of its values is one of the usual words for train,
val and test; it is refused if another is neither blank nor such a word: nobody knows whether ``holdout`` may train.
Two columns of one kind are refused: the user has to choose one of them. The values of a table are private, so none
of them is shown but the words that name parts of a dataset; the names of its columns are shown, once it is known
that its first line is a heading.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data.quarantine import BadStudy
from data.sources.rowboxes import BoxColumns, choose_box_columns
from data.sources.study import OTHER_SPLITS, SPLIT_NAMES, SourceOptions, Split
from data.sources.table import Row

# Lower case, letters and digits only: NIH's "Patient ID", MIMIC's "subject_id", RSNA's "patientId", ADNI's "PTID".
PATIENT_COLUMNS = frozenset(
    (
        "patient",
        "patientid",
        "patientno",
        "patientnumber",
        "subject",
        "subjectid",
        "participant",
        "participantid",
        "ptid",
    )
)
# MIMIC's and MedMNIST's "split", CelebA's and VinDr's kin, Kaggle's "Usage".
SPLIT_COLUMNS = frozenset(
    ("split", "datasplit", "datasetsplit", "set", "dataset", "subset", "partition", "usage", "fold", "phase")
)
# Columns of these names hold splits, whatever their words are; a set, a fold or a phase may be something else.
_CERTAIN = frozenset(("split", "datasplit", "datasetsplit", "partition"))
_SHORT_NUMBER = re.compile(r"\d(\.\d+)?e\+\d+", re.I | re.ASCII)
_SHORTENED = BadStudy(
    "a row whose patient is a number in short form (with E+), as Excel writes long ones",
    "the whole number: two patients may have the same first digits",
    "save the table again with the column as text",
)


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used, by their names in its heading, and those that are not."""

    image: str
    labels: tuple[str, ...]
    patient: str | None
    split: str | None
    unused: tuple[str, ...]
    box: BoxColumns | None = None

    def patient_of(self, row: Row) -> str | None:
        """Return a row's patient; None where the table names none."""
        return row[self.patient] or None if self.patient else None

    def fault_of(self, row: Row) -> BadStudy | None:
        """Return the fault of a row whose patient is a number that lost its digits: others may have the same."""
        return _SHORTENED if self.patient and _SHORT_NUMBER.fullmatch(row[self.patient]) else None

    def split_of(self, row: Row) -> Split | None:
        """Return a row's split; None where the table names none."""
        return SPLIT_NAMES.get(row[self.split].lower()) if self.split else None

    def describe(self, rows: Sequence[Row], pattern: str | None) -> str:
        """Describe the use of each column; ``pattern`` identifies patients if no column does."""
        used = [f"files from {self.image}", f"classes from {', '.join(self.labels)}"]
        if self.box:
            used.append(f"boxes from {', '.join(self.box.names)}")
        if self.patient:
            used.append(f"patients from {self.patient} ({_patients(self.patient, rows)})")
        elif pattern is None:
            used.append("patients from none: each file counts as a patient of its own, unless you set patient_column")
        if self.split:
            counts = [(name, sum(self.split_of(row) == name for row in rows)) for name in ("train", "val", "test")]
            used.append(
                f"splits from {self.split} ({', '.join(f'{count} {name}' for name, count in counts if count)})"
            )
        return f"columns of the table: {'; '.join(used)}; not used: {', '.join(self.unused) or 'none'}"


def choose_columns(heading: Sequence[str], rows: Sequence[Row], options: SourceOptions) -> Columns:
    """Choose a table's columns by the options and by the usual names.

    Raises ValueError for a missing column, for two columns of which either may be meant, and for a split column that
    holds other words than those for train, val and test.
    """
    heading = [name for name in heading if name]
    labels = options.label_columns or (options.label_column,)
    _check_there(heading, [options.image_column, *labels, options.patient_column, options.split_column])
    image, *labels = (_named(heading, name) for name in (options.image_column, *labels))
    rest = [name for name in heading if name not in (image, *labels)]
    patient = _named(heading, options.patient_column or "") or None
    if options.patient_column is None and options.patient_pattern is None:
        patient = _only(_called(rest, PATIENT_COLUMNS), "patient")
    split = _named(heading, options.split_column or "") or None
    if options.split_column is None:
        candidates = [name for name in _called(rest, SPLIT_COLUMNS) if _are_splits(rows, name)]
        split = _only(candidates, "split")
    if split is not None:
        _check_splits(rows, split)
    box = choose_box_columns([name for name in rest if name not in (patient, split)], options.box_columns)
    used = [image, *labels, patient, split, *(box.names if box else ())]
    _check_once(heading, used)
    return Columns(image, tuple(labels), patient, split, tuple(name for name in rest if name not in used), box)


def _check_there(heading: list[str], wanted: Sequence[str | None]) -> None:
    """Raise ValueError for a missing column, not showing the first line: without a heading, it holds a patient."""
    missing = [name for name in wanted if name and not _named(heading, name)]
    if missing:
        raise ValueError(
            f"the table has {len(heading)} columns but not {', '.join(missing)}; expected a first line that names "
            "them; set image_column, label_column or label_columns, patient_column, split_column"
        )


def _check_once(heading: list[str], used: Sequence[str | None]) -> None:
    doubled = [name for name in used if name and heading.count(name) > 1]
    if doubled:
        raise ValueError(
            f"the table has {heading.count(doubled[0])} columns called {doubled[0]}; expected one; rename or delete "
            "the others"
        )


def _named(heading: list[str], name: str) -> str:
    """Return the column of this name, or the only column that differs from it only in case; else an empty text."""
    alike = [column for column in heading if column.lower() == name.lower()]
    return name if name in heading else alike[0] if len(alike) == 1 else ""


def _called(heading: list[str], names: frozenset[str]) -> list[str]:
    """Return the columns that have one of the usual names, whatever their case, spaces and punctuation."""
    return [column for column in heading if _plain(column) in names]


def _plain(column: str) -> str:
    return "".join(filter(str.isalnum, column.lower()))


def _only(candidates: list[str], kind: str) -> str | None:
    if len(candidates) > 1:
        raise ValueError(
            f"the table has {len(candidates)} columns that may name the {kind}: {', '.join(candidates)}; expected "
            f"one; name the right one by {kind}_column, or give {kind}_column an empty text to use none of them"
        )
    return candidates[0] if candidates else None


def _are_splits(rows: Sequence[Row], column: str) -> bool:
    words = {row[column].lower() for row in rows}
    if _plain(column) in _CERTAIN and words != {""}:
        return True
    return not words.isdisjoint(SPLIT_NAMES) or not words.isdisjoint(OTHER_SPLITS)


def _check_splits(rows: Sequence[Row], column: str) -> None:
    unknown = [word for row in rows if (word := row[column].lower()) not in (*SPLIT_NAMES, "")]
    if not unknown:
        return
    shown = sorted(set(unknown) & OTHER_SPLITS)
    hidden = "" if set(unknown) == set(shown) else "not shown: it may hold a name"
    said = "; ".join(part for part in (", ".join(shown), hidden) if part)
    raise ValueError(
        f"column {column} of the table has {len(unknown)} of {len(rows)} rows whose value is no split ({said}); "
        f"expected one of {', '.join(SPLIT_NAMES)}, or a blank for a split that is drawn; correct the table, or give "
        "split_column an empty text"
    )


def _patients(column: str, rows: Sequence[Row]) -> str:
    names = [row[column] for row in rows]
    text = f"{len(set(names) - {''})} patients in {len(rows)} rows"
    blank = names.count("")
    return text + (f", of which {blank} name no patient and count as one each" if blank else "")
