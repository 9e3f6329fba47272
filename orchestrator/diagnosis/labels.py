"""Labels: causes that lie in what a training learns from, and in what it is judged on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped

from data.labels import BOXES, CLASSES, LABEL_MAP, Labels
from data.shards.classes import pad_classes
from data.shards.index import Selection, ShardSet
from orchestrator.diagnosis.cause import Cause, share
from orchestrator.diagnosis.record import RebuiltTraining
from orchestrator.judging.health import spread_out
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World

MOST_MAPS = {2: 256, 3: 12}  # samples whose voxels are read, evenly spaced
TOLD = 0.95  # accuracy of one number
FEWEST_OF_A_CLASS = 4
COPIED = 0.05  # share of the validation samples
FEW_PATIENTS = 2  # a picture that more patients have is air, and no copy


@dataclass(frozen=True)
class Labelling:
    """Labels of samples: for each a row of booleans, one for each number that has a name."""

    names: tuple[str, ...]
    has: Shaped[np.ndarray, "n k"]

    def counts(self) -> list[int]:
        """Return how many samples have each."""
        return self.has.sum(0).tolist()


def causes(rebuilt: RebuiltTraining) -> Iterator[Cause]:
    """Yield what is wrong with labels and splits."""
    needs = rebuilt.begun.needs
    if needs is None:
        return
    for shards, selection in rebuilt.shards:
        trained = labelling(shards, selection, needs)
        yield from _constant(trained, needs)
        if rebuilt.labelled is None:
            continue
        val = rebuilt.labelled.val
        judged = labelling(shards, val, needs)
        yield from _missing(trained, judged, needs, whole=_is_whole(shards, selection, needs, val))
        yield from _shared(shards, selection, val)
        if needs is CLASSES:
            yield from _told(shards, selection, trained)


def labelling(shards: ShardSet, selection: Selection, needs: Labels) -> Labelling:
    """Return the labels of samples; of label maps, those of some samples, evenly spaced."""
    names = shards.names_of(needs)
    if needs is LABEL_MAP:
        rows = spread_out(selection.row_ids, MOST_MAPS[shards.spatial_dims])
        has = [
            [bool((own == value).any()) for value in names]
            for batch in batches_of(shards, rows, World(), needs)
            for own in (batch.labels if batch.labels is not None else ())
        ]
        return Labelling(tuple(names.values()), np.array(has, bool).reshape(-1, len(names)))
    column = "classes" if needs is CLASSES else "box_classes"
    padded = pad_classes(shards.rows[column].take(selection.row_ids))
    return Labelling(tuple(names.values()), (padded[:, :, None] == np.array(list(names))).any(1))


def _is_whole(shards: ShardSet, selection: Selection, needs: Labels, val: Selection) -> bool:
    """Tell whether the labels of all samples are known: of label maps only some are read."""
    most = MOST_MAPS[shards.spatial_dims]
    return needs is not LABEL_MAP or max(selection.num_samples, val.num_samples) <= most


def _constant(trained: Labelling, needs: Labels) -> Iterator[Cause]:
    """Say where all training samples have the same labels."""
    if len(trained.has) < 2:
        return
    counts = dict(zip(trained.names, trained.counts(), strict=True))
    if not trained.has.any():
        what = {LABEL_MAP: "label maps hold none of the labels", BOXES: "samples have a box"}.get(
            needs, "have a class"
        )
        number = len(trained.has) if needs is LABEL_MAP else 0
        yield Cause(
            "constant targets",
            f"{number} of {len(trained.has)} training {what} ({', '.join(trained.names)}); expected some",
            "look at the values in the label files, and ingest again with the names that they have",
        )
    elif needs is CLASSES and len(trained.names) > 1 and (trained.has == trained.has[0]).all():
        only = next(name for name, count in counts.items() if count)
        yield Cause(
            "constant targets",
            f"all {len(trained.has)} training samples have the class {only}; expected two classes or more",
            "split the samples so that each split has every class",
        )


def _missing(trained: Labelling, judged: Labelling, needs: Labels, whole: bool) -> Iterator[Cause]:
    """Say which labels are in one of training and validation alone."""
    if not whole or not trained.has.any() or not judged.has.any():
        return
    for name, learnt, scored in zip(trained.names, trained.counts(), judged.counts(), strict=True):
        shown = f"{name} is in {learnt} training and {scored} validation samples; expected some in both"
        if learnt == 0 and scored > 0:
            yield Cause(
                "label missing from training", shown,
                "raise downstream.label_fraction, or split the patients anew",
            )  # fmt: skip
        if scored == 0 and learnt > 0:
            yield Cause(
                "label missing from validation",
                shown,
                "split the patients anew, or cross-validate (downstream.num_folds)",
            )


def _shared(shards: ShardSet, trained: Selection, judged: Selection) -> Iterator[Cause]:
    """Say where validation samples, their patients or their voxels are among those that are trained on."""
    remedy = "name another downstream.val_split, or split the patients anew"
    again = len(set(trained.row_ids.tolist()) & set(judged.row_ids.tolist()))
    patients, voxels = shards.rows["patient"].to_numpy(), shards.rows["crc32"].to_numpy()
    own, others = (set(patients[one.row_ids].tolist()) for one in (trained, judged))
    if again or own & others:
        what = f"{again} of {judged.num_samples} validation samples are" if again else "no sample is"
        yield Cause(
            "leak into validation",
            f"{what} trained on, and {len(own & others)} of {len(others)} validation patients; expected 0",
            remedy,
        )
        return
    rare = _rare(voxels, patients)
    copies = sum(int(one) in rare for one in np.intersect1d(voxels[judged.row_ids], voxels[trained.row_ids]))
    if copies > COPIED * judged.num_samples:
        yield Cause(
            "leak into validation",
            f"{copies} of {judged.num_samples} validation samples have the voxels of a training sample of another "
            "patient; expected 0",
            "the same scan has two patients: ingest again with one for both",
        )


def _rare(voxels: Int64[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"]) -> set[int]:
    """Return the checksums of voxels that at most two patients have: more have slices of air in common."""
    pairs = {(int(code), str(patient)) for code, patient in zip(voxels, patients, strict=True)}
    codes, counts = np.unique([code for code, _ in pairs], return_counts=True)
    return set(codes[counts <= FEW_PATIENTS].tolist())


def _told(shards: ShardSet, selection: Selection, trained: Labelling) -> Iterator[Cause]:
    """Say where one number of a sample, that shows nothing of it, tells its class."""
    if not (trained.has.sum(1) == 1).all():
        return
    patients = shards.rows["patient"].take(selection.row_ids).to_numpy()
    # One of each patient: samples of one patient are alike in every number.
    chosen = spread_out(np.unique(patients, return_index=True)[1], MOST_MAPS[shards.spatial_dims])
    classes = trained.has.argmax(1)[chosen]
    counts = np.unique(classes, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < FEWEST_OF_A_CLASS:
        return
    for name, values in _numbers(shards, selection.row_ids[chosen]).items():
        found = _accuracy(values, classes)
        if found >= TOLD:
            chance = counts.max() / counts.sum()
            yield Cause(
                "leaking labels",
                f"{name} alone tells {share(found, 1)} of the training samples' classes, and the commonest class "
                f"{share(chance, 1)}; expected below {share(TOLD, 1)}",
                f"look whether scans of each class differ in {name} by their source, and equalise it",
            )
            return


def _numbers(shards: ShardSet, row_ids: Int64[np.ndarray, " n"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Return numbers of samples that show nothing of what is in them, by name."""
    rows = shards.rows.take(row_ids)
    found = {
        "the dataset": np.unique(rows["dataset"].to_numpy(), return_inverse=True)[1].astype(float),
        "the modality": np.unique(rows["modality"].to_numpy(), return_inverse=True)[1].astype(float),
        "the size": np.array([float(np.prod(shape)) for shape in rows["shape"].to_pylist()]),
        "the spacing": np.array([float(np.prod(spacing)) for spacing in rows["spacing_mm"].to_pylist()]),
    }
    seen = [
        _seen(batch.sample(index)) for batch in batches_of(shards, row_ids, World()) for index in range(len(batch))
    ]
    for name in seen[0]:
        found[name] = np.array([one[name] for one in seen])
    return found


def _seen(image: Float[torch.Tensor, "c *s"]) -> dict[str, float]:
    """Return numbers of an image: its brightness, its contrast, and the brightness of its first and last corner."""
    edge = [max(1, length // 8) for length in image.shape[1:]]
    first, last = image[(..., *(slice(0, n) for n in edge))], image[(..., *(slice(-n, None) for n in edge))]
    return {
        "the mean intensity": float(image.mean()),
        "the contrast": float(image.std()),
        "the first corner": float(first.mean()),
        "the last corner": float(last.mean()),
    }


def _accuracy(values: Float[np.ndarray, " n"], classes: Int64[np.ndarray, " n"]) -> float:
    """Return the share of samples whose neighbour by one number has their class; a mean over classes.

    Equal values are shuffled (with a fixed seed), so that a number that all share tells nothing.
    """
    order = np.lexsort((np.random.default_rng(0).permutation(len(values)), values))
    ordered, sorted_ = values[order], classes[order]
    gaps = np.diff(ordered)
    before, after = np.r_[np.inf, gaps], np.r_[gaps, np.inf]
    places = np.arange(len(ordered))
    neighbour = np.where(before < after, places - 1, places + 1).clip(0, len(places) - 1)
    right = sorted_[neighbour] == sorted_
    return float(np.mean([right[sorted_ == number].mean() for number in np.unique(sorted_)]))
