"""Study: an acquisition as its source describes it, before any voxel is read; SourceOptions: how to find studies."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from data.box_rule import LabelBoxes
from data.quarantine import BadStudy
from data.sources.boxes import FoundBox
from data.sources.stack import Stack

Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# Words that name a part of a dataset without saying which of the three it is; they are shown where they are refused.
OTHER_SPLITS = frozenset(
    (
        *("dev", "devel", "development", "holdout", "hold-out", "hold_out", "heldout", "held-out", "held_out"),
        *("eval", "evaluation", "tune", "tuning", "calibration", "internal", "external", "unlabeled", "unlabelled"),
    )
)
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
NEURO_SUFFIXES = (".mgz", ".mgh", ".mnc")
VOLUME_SUFFIXES = (".nii.gz", ".nii", *ITK_SUFFIXES, *NEURO_SUFFIXES, ".hdr")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
PROJECTIONS = ("CR", "DX", "IO", "MG", "PX", "RG", "XR")
MODALITIES = {
    "MRI": "MR", "PET": "PT", "X-RAY": "XR", "XRAY": "XR", "CR": "XR", "DX": "XR", "RG": "XR", "PX": "XR",
    # Names of MR channels in a dataset.json.
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
    ``rescale`` is a slope and an intercept that turn the file's intensities into HU where the file has none.
    ``classes`` are the study's classes, an empty tuple where it has none, or None where they are unknown;
    ``class_names`` are their names. ``boxes`` are those of its findings, likewise; ``size`` is that of the image that
    they were drawn on, where the source states it. ``label_boxes`` says how its label map becomes boxes.
    ``stack`` is the geometry of pictures of slices that are one volume.
    ``fault`` is set where the source itself shows that the study cannot be used, such as a label without an image.
    """

    key: str
    kind: Literal["volume", "dicom", "picture", "array", "stack"]
    image: tuple[str, ...]
    patient: str
    dataset: str
    label: str | None = None
    modality: str | None = None
    split: Split | None = None
    classes: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    boxes: tuple[FoundBox, ...] | None = None
    size: tuple[int, ...] | None = None
    label_boxes: LabelBoxes | None = None
    stack: Stack | None = None
    num_channels: int = 1
    rescale: tuple[float, float] | None = None
    fault: BadStudy | None = None
    dataset_is_given: bool = False


LABEL_MAPS = ("volumes", "nnunet", "dicom")
SCANS = (*LABEL_MAPS, "class_folders", "csv", "coco", "voc")
OF_ANY_MODALITY = (*SCANS, "npz")
ANY = (*OF_ANY_MODALITY, "deeplesion")


def _option(default: Any, layouts: tuple[str, ...], description: str) -> Any:
    """Return a field that records which layouts take it."""
    return Field(default, description=description, json_schema_extra={"layouts": list(layouts)})


class SourceOptions(BaseModel):
    """How to find studies. An option that its layout does not take is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str | None = _option(
        None,
        ANY,
        "the name that is written beside every sample; by default a pseudonym of the source folder's name, which "
        "may be a patient's name",
    )
    modality: str | None = _option(
        None,
        OF_ANY_MODALITY,
        "the modality (CT, MR, XR, ...) of files that do not state it; of DICOM files, only series of this modality "
        "are taken",
    )
    images: str | None = _option(
        None,
        ("volumes", "dicom", "class_folders"),
        "a pattern of the paths of images below the source, such as '*/CT_image*.nii.gz': * is anything within a "
        "name, **/ is any folders, {ct,mr} is one of these; for DICOM, a pattern of the folder of a series, where . "
        "is the source itself",
    )
    labels: str | None = _option(
        None,
        ("volumes", "dicom"),
        "a pattern of the path of an image's label map, such as '*/CT_mask*.nii.gz': each wildcard stands for what "
        "the same wildcard in images stood for",
    )
    label_suffix: str | None = _option(
        None,
        ("volumes",),
        "a short form of labels: an image's label map has the image's name with this suffix: _seg pairs "
        "ct.nii.gz with ct_seg.nii.gz",
    )
    patient_pattern: str | None = _option(
        None,
        ANY,
        "a regular expression that is searched in the path of a study; its groups, or else its whole match, name the "
        "patient: 'sub-[0-9]+'; by default each study is a patient of its own (DICOM: the PatientID)",
    )
    label_names: dict[NonNegativeInt, str] | None = _option(
        None,
        LABEL_MAPS,
        "what the values of label maps mean, such as '{1: liver}'; these names replace those of a dataset.json, and "
        "a value without a name is called by its number",
    )
    boxes: Literal["planes", "volumes"] | None = _option(
        None,
        LABEL_MAPS,
        "make boxes of the connected parts of each value of a label map: of each plane by itself, one plane thick "
        "(planes), or of the whole volume (volumes)",
    )
    box_min_voxels: PositiveInt = _option(
        1, LABEL_MAPS, "make no box of a part of fewer voxels, as they are stored; it needs boxes"
    )
    box_labels: tuple[PositiveInt, ...] = _option(
        (),
        LABEL_MAPS,
        "the values of label maps that become boxes, such as '[12]'; by default all; it needs boxes",
    )
    rescale: tuple[float, float] | None = _option(
        None, SCANS, "the slope and the intercept that turn the file's intensities into HU, for CT not stored in HU"
    )
    secondary_captures: bool = _option(
        False,
        ("dicom",),
        "take secondary captures for scans, as some archives store X-rays; they may be pictures of a screen with a "
        "name in their pixels, so look at some first",
    )
    image_column: str = _option("file", ("csv",), "the column of image files, relative to the table")
    label_column: str = _option("label", ("csv",), "the column of classes")
    label_separator: str | None = _option(
        None, ("csv",), "the text between the classes in the column of classes, where an image may have several: '|'"
    )
    label_columns: tuple[str, ...] = _option(
        (),
        ("csv",),
        "one column for each class, instead of one column of classes: 1 means that an image has the class, 0 or a "
        "blank that it does not",
    )
    uncertain: Literal["negative", "positive", "unlabelled"] = _option(
        "negative",
        ("csv",),
        "the meaning of -1 in a class's column: the image does not have the class (negative), it has the class "
        "(positive), or it counts as unlabelled",
    )
    no_class: str | None = _option(
        None, ("csv",), "the text in the column of classes for an image without any class, such as 'No Finding'"
    )
    box_columns: tuple[str, ...] = _option(
        (),
        ("csv",),
        "the four columns of a row's box: x_min, y_min, x_max and y_max, or x, y, width and height; by default those "
        "with usual names; an empty text uses none",
    )
    patient_column: str | None = _option(
        None,
        ("csv",),
        "the column of patients; by default one with a usual name (patient, Patient ID, subject_id, ...); an empty "
        "text uses none",
    )
    split_column: str | None = _option(
        None,
        ("csv",),
        "the column of splits; by default one with a usual name (split, set, partition, ...) whose values are words "
        "for train, val and test; an empty text uses none",
    )

    @classmethod
    def layouts(cls, option: str) -> tuple[str, ...]:
        """Return the layouts that take an option."""
        extra = cls.model_fields[option].json_schema_extra
        assert isinstance(extra, dict)
        return tuple(cast(list[str], extra["layouts"]))

    def check_layout(self, layout: str) -> None:
        """Raise ValueError for an option that the layout does not take."""
        strange = [name for name in self.model_dump(exclude_defaults=True) if layout not in self.layouts(name)]
        if strange:
            name = strange[0]
            raise ValueError(
                f"option {name} means nothing to layout {layout}; expected layout {' or '.join(self.layouts(name))}; "
                f"leave {name} out, or choose another layout"
            )

    @model_validator(mode="after")
    def _one_kind_of_labels(self) -> "SourceOptions":
        if self.label_columns and (self.label_separator or self.no_class):
            raise ValueError(
                f"label_columns {', '.join(self.label_columns)} with label_separator {self.label_separator!r} and "
                f"no_class {self.no_class!r}: these two belong to a single label column; give one kind of labels"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_patients(self) -> "SourceOptions":
        if self.patient_pattern and self.patient_column:
            raise ValueError(
                f"patient_pattern {self.patient_pattern!r} with patient_column {self.patient_column!r}: each of them "
                "names the patients; give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _boxes_have_a_size(self) -> "SourceOptions":
        asked = f"box_min_voxels {self.box_min_voxels}" if self.box_min_voxels > 1 else ""
        if self.box_labels:
            asked = f"box_labels {list(self.box_labels)}"
        if asked and self.boxes is None:
            raise ValueError(f"{asked} without boxes: no boxes would be made; give boxes planes or volumes too")
        return self

    @field_validator("rescale")
    @classmethod
    def _keeps_differences(cls, rescale: tuple[float, float] | None) -> tuple[float, float] | None:
        if rescale is not None and rescale[0] == 0:
            raise ValueError(f"rescale {list(rescale)}: slope 0 makes all intensities alike; give the file's slope")
        return rescale

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
        """Return the patient of a study at a path; without a pattern each study is a patient of its own.

        An empty text where the pattern does not match, or matches nothing but an empty text: ``find_studies`` makes
        such a study faulty, or two scans of a patient could end in two splits.
        """
        if self.patient_pattern is None:
            return f"{dataset}/{path}"
        match = re.search(self.patient_pattern, path)
        if match is None:
            return ""
        groups = [group for group in match.groups() if group is not None]
        return "/".join(groups) or match.group()


def normal_modality(name: str) -> str:
    """Return a modality's short name: MRI and its sequences -> MR, PET -> PT, plain X-ray -> XR, else upper case."""
    return MODALITIES.get(name.upper(), name.upper())


def suffix_of(path: str, suffixes: tuple[str, ...]) -> str | None:
    """Return which of the given suffixes a path has, in any case, or None."""
    return next((path[-len(suffix) :] for suffix in suffixes if path.lower().endswith(suffix)), None)


def stem_of(path: str, suffixes: tuple[str, ...] = VOLUME_SUFFIXES) -> str:
    """Return a file's name without folders and without its suffix."""
    name = PurePosixPath(path).name
    suffix = suffix_of(name, suffixes)
    return name[: -len(suffix)] if suffix else name
