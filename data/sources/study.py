"""Study: what a source says about one acquisition before any voxel is read; SourceOptions: how to look."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from data.quarantine import BadStudy

Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc", ".hdr")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
PROJECTIONS = ("CR", "DX", "IO", "MG", "PX", "RG", "XR")
MODALITIES = {
    "MRI": "MR", "PET": "PT", "X-RAY": "XR", "XRAY": "XR", "CR": "XR", "DX": "XR", "RG": "XR", "PX": "XR",
    # What a dataset.json calls the channels of MR.
    **dict.fromkeys(("FLAIR", "T1", "T1W", "T1GD", "T1CE", "T2", "T2W"), "MR"),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """One acquisition to read.

    ``key`` and ``patient`` are the source's own names: private, stable, and never written to shards, logs or errors.
    So is ``dataset``, the source folder's name, unless the options gave it (``dataset_is_given``).
    ``image`` holds the addresses of the files: one, or one per channel (volumes), or one per slice (DICOM). For an
    array it is the file's address, the array's name and the image's number.
    ``num_channels`` above 1 allows channels as the last axis of a single file (Medical Segmentation Decathlon).
    ``rescale`` is a slope and an intercept that take the file's intensities to HU where the file does not say so.
    ``classes`` are the classes it has, none of those that were looked for, or None where nobody has said; and
    ``class_names`` what they are called.
    ``fault`` is set where the source itself shows that the study cannot be used, such as a label without an image.
    """

    key: str
    kind: Literal["volume", "dicom", "picture", "array"]
    image: tuple[str, ...]
    patient: str
    dataset: str
    label: str | None = None
    modality: str | None = None
    split: Split | None = None
    classes: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    num_channels: int = 1
    rescale: tuple[float, float] | None = None
    fault: BadStudy | None = None
    dataset_is_given: bool = False


class SourceOptions(BaseModel):
    """How to find studies; what does not apply to a layout is left alone.

    dataset          name written beside every sample (default: a pseudonym of the source folder's name, which may be
                     a patient's)
    modality         CT, MR, ...: the modality of files that do not say it; for DICOM, only series of it are taken
    images           pattern of image paths below the source: ``*`` within a name, ``**/`` any folders, ``{ct,mr}``
                     either; for DICOM, of the folder of a series (``.`` is the source itself)
    labels           pattern of the label's path; each wildcard stands for what the same one in ``images`` was
    label_suffix     short form: the label is the image's name with this suffix, ``ct.nii.gz`` -> ``ct_seg.nii.gz``
    patient_pattern  regular expression searched in a study's path; its groups (or all of it) are the patient
    label_names      what label values mean, {1: liver}; they come before those of a Decathlon dataset.json, and a
                     value without a name is called by its number
    rescale          slope and intercept from the file's intensities to HU, for CT that was not stored in HU
    image_column ... columns of the CSV layout
    label_separator  what stands between the classes in a CSV's label column, where an image may have several
    label_columns    columns of a CSV that are classes of their own, in place of a label column: 1 says that an image
                     has the class, 0 or a blank that it has not
    uncertain        what -1 in such a column means: that the image has the class, that it has it not, or that the
                     image counts as one that nobody has labelled
    no_class         what a label column says where an image has none of the classes, such as ``No Finding``
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str | None = None
    modality: str | None = None
    images: str | None = None
    labels: str | None = None
    label_suffix: str | None = None
    patient_pattern: str | None = None
    label_names: dict[int, str] | None = None
    rescale: tuple[float, float] | None = None
    image_column: str = "file"
    label_column: str = "label"
    label_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    uncertain: Literal["negative", "positive", "unlabelled"] = "negative"
    no_class: str | None = None
    patient_column: str | None = None
    split_column: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_labels(self) -> "SourceOptions":
        if self.label_columns and (self.label_separator or self.no_class):
            raise ValueError(
                f"label_columns {', '.join(self.label_columns)} with label_separator {self.label_separator!r} and "
                f"no_class {self.no_class!r}: these two belong to a single label column; give one kind of labels"
            )
        return self

    @field_validator("modality")
    @classmethod
    def _known_name(cls, modality: str | None) -> str | None:
        return None if modality is None else normal_modality(modality)

    @field_validator("patient_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"patient_pattern {pattern!r} is no regular expression ({error}); escape it") from None
        return pattern

    def patient(self, path: str, dataset: str) -> str:
        """Return the patient of a study at a path; without a pattern each study is a patient of its own."""
        if self.patient_pattern is None:
            return f"{dataset}/{path}"
        match = re.search(self.patient_pattern, path)
        if match is None:
            raise ValueError(
                f"patient_pattern {self.patient_pattern!r} does not match the path of a study ({len(path)} letters, "
                "not shown: it may hold a name); expected a match in every path, or two scans of a patient "
                "may end in two splits; widen the pattern"
            )
        groups = [group for group in match.groups() if group is not None]
        return "/".join(groups) or match.group()


def normal_modality(name: str) -> str:
    """Return a modality's short name: MRI and sequences of it -> MR, PET -> PT, plain X-ray -> XR, or upper case."""
    return MODALITIES.get(name.upper(), name.upper())


def suffix_of(path: str, suffixes: tuple[str, ...]) -> str | None:
    """Return the suffix of a path among those given, whatever its case, or None."""
    return next((path[-len(suffix) :] for suffix in suffixes if path.lower().endswith(suffix)), None)


def stem_of(path: str, suffixes: tuple[str, ...] = VOLUME_SUFFIXES) -> str:
    """Return a file's name without folders and without its suffix."""
    name = PurePosixPath(path).name
    suffix = suffix_of(name, suffixes)
    return name[: -len(suffix)] if suffix else name
