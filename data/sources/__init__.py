"""Sources: layouts on disk or in a bucket -> studies. No voxel is read here.

>>> find_studies("scans", "volumes", SourceOptions(images="*_image.nrrd", labels="*_label.nrrd"))
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from data.box_rule import LabelBoxes
from data.files import File, Tree, folder_of, is_file, join, list_tree, shown, state_of, survey
from data.quarantine import BadStudy
from data.sources.arrays import find_npz
from data.sources.coco import describe_coco, descriptions, find_coco, root_of
from data.sources.deeplesion import describe_deeplesion, find_deeplesion
from data.sources.description import DESCRIPTION
from data.sources.leftout import LeftOutFiles, companions, describe_tree, left_out, may_be_scan
from data.sources.nnunet import find_nnunet, label_names
from data.sources.pictures import find_class_folders
from data.sources.study import SourceOptions, Study
from data.sources.table import find_table
from data.sources.tabular import describe_table, find_csv
from data.sources.voc import annotations, describe_voc, find_voc
from data.sources.volumes import find_volumes
from data.spelling import did_you_mean


def _find_dicom(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find DICOM series; pydicom is imported only here, because every command line imports the names of layouts."""
    from data.sources.series import find_dicom

    return find_dicom(source, dataset, options)


LAYOUTS = {
    "volumes": find_volumes,
    "nnunet": find_nnunet,
    "dicom": _find_dicom,
    "class_folders": find_class_folders,
    "csv": find_csv,
    "npz": find_npz,
    "coco": find_coco,
    "voc": find_voc,
    "deeplesion": find_deeplesion,
}
# Their images are those that a table or a description names, which may be the source itself.
_NAMED = ("csv", "coco", "deeplesion")

_UNREACHABLE = {
    "broken link": BadStudy(
        "a broken link", "a link to a file", "restore the file that it leads to, or delete the link"
    ),
    "file that cannot be reached": BadStudy(
        "a file in a folder that cannot be entered", "permission to enter it", "give it (chmod u+rx)"
    ),
    "folder that cannot be listed": BadStudy(
        "a folder that cannot be listed",
        "permission to read and enter it",
        "give it (chmod u+rx), or remove the folder",
    ),
}

__all__ = [
    "LAYOUTS",
    "LeftOutFiles",
    "SourceOptions",
    "Study",
    "companions",
    "find_studies",
    "label_names",
    "left_out_of",
    "remarks",
    "survey_of",
]


def find_studies(source: str, layout: str, options: SourceOptions | None = None) -> list[Study]:
    """Find the studies of a source, in an order that depends on nothing but their paths.

    ``source`` is a local folder or an address (``s3://bucket/folder``). Raises ValueError for an unknown layout, for
    options that contradict each other or that the layout does not take, and for a source without any study. What is
    wrong with one row or file is its study's ``fault``.
    """
    options = options or SourceOptions()
    if layout not in LAYOUTS:
        near = did_you_mean(layout, LAYOUTS)
        raise ValueError(f"layout: there is no {layout!r}{near}; expected one of {', '.join(LAYOUTS)}")
    options.check_layout(layout)
    dataset = options.dataset or PurePosixPath(source.partition("?")[0].rstrip("/")).stem
    studies = LAYOUTS[layout](source, dataset, options)
    if not studies:
        raise ValueError(
            f"source {shown(source)}: 0 studies in layout {layout!r} (images pattern: {options.images!r}); "
            "expected 1 or more; check the folder, the layout and the patterns: "
            f"{describe_tree(survey_of(source, layout), layout)}"
        )
    if layout == "csv":
        kinds = {odd.path: odd.kind for odd in survey_of(source, layout).odd if odd.kind in _UNREACHABLE}
        studies = [replace(one, fault=_UNREACHABLE[kinds[one.key]]) if one.key in kinds else one for one in studies]
    studies += _unreachable(source, layout, dataset, options)
    rule = LabelBoxes(options.boxes, options.box_min_voxels, options.box_labels or None) if options.boxes else None
    studies = [
        replace(study, dataset_is_given=bool(options.dataset), label_boxes=rule if study.label else None)
        for study in studies
    ]
    return [study if study.patient else _without_patient(study) for study in _check_patients(studies, options)]


def survey_of(source: str, layout: str) -> Tree:
    """List the files among which a source's studies are: those below the folder, or beside the table that it is."""
    if layout == "npz" and is_file(source):
        return Tree([File(source.rpartition("/")[2], source, *state_of(source))], [])
    if layout == "coco":
        return survey(root_of(source))
    return survey(folder_of(source) if layout in _NAMED and is_file(source) else source)


def left_out_of(source: str, layout: str, studies: Iterable[Study]) -> list[LeftOutFiles]:
    """List what of a source is neither read nor one of its studies, good or bad."""
    used = {uri for study in studies for uri in (*study.image, study.label) if uri}
    if layout == "nnunet":
        used.add(join(source, DESCRIPTION))
    if layout in ("csv", "deeplesion"):
        used.add(find_table(source)[0])
    if layout == "coco":
        used.update(descriptions(source))
    if layout == "voc":
        used.update(file.uri for file in annotations(list_tree(source)))
    tree, keys = survey_of(source, layout), {study.key for study in studies}
    return left_out(Tree(tree.files, [odd for odd in tree.odd if odd.path not in keys]), used, layout)


def _unreachable(source: str, layout: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Return a bad study for each broken link to a scan, and for each folder whose scans cannot be listed.

    A table names its files itself.
    """
    if layout in (*_NAMED, "npz"):
        return []
    blank = Study("", "volume", (), "", dataset, modality=options.modality)
    return [
        replace(blank, key=odd.path, patient=f"{dataset}/{odd.path}", fault=_UNREACHABLE[odd.kind])
        for odd in survey(source).odd
        if odd.kind in _UNREACHABLE and may_be_scan(odd.path)
    ]


def _check_patients(studies: list[Study], options: SourceOptions) -> list[Study]:
    """Return the studies; raise ValueError where the patient_pattern gives none of them a patient."""
    if any(study.patient for study in studies):
        return studies
    raise ValueError(
        f"patient_pattern {options.patient_pattern!r} does not match the path of a study ({len(studies[0].key)} "
        "letters, not shown: it may hold a name); expected a match in every path, or two scans of a patient may end "
        "in two splits; widen the pattern"
    )


def _without_patient(study: Study) -> Study:
    fault = BadStudy(
        "a path in which patient_pattern finds no patient",
        "a match in every path, or two scans of a patient may end in two splits",
        "widen the pattern, or rename the file",
    )
    return replace(study, patient=f"{study.dataset}/{study.key}", fault=study.fault or fault)


def remarks(source: str, layout: str, options: SourceOptions) -> list[str]:
    """Describe how a source identifies patients, which columns of a table are used, and which boxes it has."""
    if layout == "csv":
        return [describe_table(source, options)]
    if layout == "deeplesion":
        return [describe_deeplesion(source)]
    said = {"coco": describe_coco, "voc": describe_voc}
    boxes = [said[layout](source)] if layout in said else []
    if layout == "dicom" or options.patient_pattern is not None:
        return boxes
    return [
        *boxes,
        "each study counts as a patient of its own; where a patient has several, identify patients "
        "by patient_pattern, or scans of one patient may end in two splits",
    ]
