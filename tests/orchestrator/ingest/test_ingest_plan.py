"""The plan of an ingest is a pure function of request and sources: splits by patient, bundles, identity."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.phantoms.abdomen import write_cohort
from data.shards.bundles import volume_id
from data.shards.manifest import duplicates
from data.sources import SourceOptions, Study
from orchestrator.ingest.plan import lay_out_bundles, make_plan
from orchestrator.ingest.request import IngestConfig
from orchestrator.ingest.run import in_stable_order
from orchestrator.ingest.splits import TORN, split_patients, without_leaks
from tests.data.readers.test_readers import write_series


def study(number: int, patient: int | None = None, **fields) -> Study:
    owner = number if patient is None else patient
    return Study(f"s{number}", "volume", (f"/scans/s{number}",), f"patient{owner}", "set", **fields)


def config(**fields) -> IngestConfig:
    fields = {"source": "scans", "layout": "nnunet", "recipe": "ct_abdomen_slices", "out": "shards"} | fields
    return IngestConfig(**fields)


def splits(studies: list[Study], **fields) -> dict[str, str]:
    return split_patients(studies, config(**fields))


def test_fractions_are_drawn_among_patients_and_not_among_studies():
    found = splits([study(n, patient=n // 5) for n in range(50)], val_fraction=0.2, test_fraction=0.3)
    assert sorted(found.values()) == ["test"] * 3 + ["train"] * 5 + ["val"] * 2


def test_patients_without_labels_train_where_others_have_labels():
    labelled = [study(n, label="a label") for n in range(10)]
    found = splits(labelled + [study(n) for n in range(10, 40)], val_fraction=0.2, test_fraction=0.3)
    assert {found[f"patient{n}"] for n in range(10, 40)} == {"train"}
    assert sorted(found[f"patient{n}"] for n in range(10)) == ["test"] * 3 + ["train"] * 5 + ["val"] * 2


def test_splits_of_the_layout_stand_and_validation_comes_from_its_training_split():
    studies = [study(n, classes=(n % 2,), split="train") for n in range(20)]
    studies += [study(n, classes=(n % 2,), split="test") for n in range(20, 24)]
    found = splits(studies, val_fraction=0.25, test_fraction=0.5)
    assert [found[f"patient{n}"] for n in range(20, 24)] == ["test"] * 4
    assert [found[f"patient{n}"] for n in range(20)].count("val") == 5


def test_a_test_split_without_labels_does_not_replace_one_with_labels():
    studies = [study(n, label="a label") for n in range(10)] + [study(n, split="test") for n in range(10, 15)]
    found = splits(studies, val_fraction=0.0, test_fraction=0.3)
    assert [found[f"patient{n}"] for n in range(10)].count("test") == 3
    assert [found[f"patient{n}"] for n in range(10, 15)] == ["test"] * 5


def test_classes_are_spread_over_splits():
    studies = [study(n, classes=(int(n >= 40),)) for n in range(50)]
    found = splits(studies, val_fraction=0.2)
    assert [found[f"patient{n}"] for n in range(40, 50)].count("val") == 2


def test_a_patient_of_several_classes_is_spread_by_the_rarest_of_them():
    studies = [
        study(n, classes=(0, 1) if n < 10 else (0,) if n < 40 else (), class_names=("a", "b")) for n in range(50)
    ]
    found = splits(studies, val_fraction=0.2)
    parts = (range(10), range(10, 40), range(40, 50))
    assert [[found[f"patient{n}"] for n in part].count("val") for part in parts] == [2, 6, 2]


def test_the_studies_of_a_patient_in_two_splits_are_bad_and_no_others():
    studies = [study(0, patient=7, split="train"), study(1, patient=7, split="test"), study(2, patient=7)]
    studies += [study(3, split="train"), study(4, split="test")]
    found = without_leaks(studies)
    assert [one.fault is TORN for one in found] == [True] * 3 + [False] * 2
    assert split_patients(found, config())["patient4"] == "test"
    assert TORN.found == "a study of a patient who is in two splits"


def test_added_patients_are_drawn_so_that_the_fractions_hold_for_all_and_earlier_ones_keep_their_split():
    first = [study(n) for n in range(6)]
    earlier = splits(first, val_fraction=0.2)
    for number in range(7, 60):
        found = split_patients([study(n) for n in range(number)], config(val_fraction=0.2), earlier)
        assert earlier.items() <= found.items()
        assert list(found.values()).count("val") == round(0.2 * number)
        earlier = found


def test_of_earlier_patients_with_too_many_held_out_none_is_added():
    earlier = {f"patient{n}": "val" for n in range(5)}
    found = split_patients([study(n) for n in range(10)], config(val_fraction=0.2), earlier)
    assert [found[f"patient{n}"] for n in range(5, 10)] == ["train"] * 5


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 9))
def test_every_study_is_in_one_bundle_and_bundles_are_of_one_size_but_the_last(num_studies, seed):
    studies = [study(n) for n in range(num_studies)]
    bundles = lay_out_bundles(studies, {s.patient: "train" for s in studies}, seed)
    assert sorted(s.key for bundle in bundles for s in bundle.studies) == sorted(s.key for s in studies)
    assert len({len(bundle.studies) for bundle in bundles[:-1]}) <= 1
    assert max(len(bundle.studies) for bundle in bundles) <= 32
    assert [bundle.number for bundle in bundles] == list(range(len(bundles)))


def test_bundles_do_not_depend_on_the_order_in_which_studies_were_found():
    studies = [study(n) for n in range(40)]
    found = {s.patient: "train" for s in studies}
    assert lay_out_bundles(studies, found, 3) == lay_out_bundles(studies[::-1], found, 3)


def test_identity_changes_with_what_is_asked_and_found(tmp_path):
    source = str(write_cohort(tmp_path, 2, seed=1, spacing_mm=(20.0, 10.0, 10.0)))
    first = make_plan(config(source=source)).identity
    assert make_plan(config(source=source, max_bad=0.5, strict=True, readers=3)).identity == first
    for change in ({"seed": 4}, {"changes": {"spacing_mm": (5, 2, 2)}}, {"rows_per_group": 4}):
        assert make_plan(config(source=source, **change)).identity != first
    named = make_plan(config(source=source, options=SourceOptions(dataset=tmp_path.name))).identity
    assert [name for name in first if first[name] != named[name]] == ["sources"], "its name is now written as it is"


def test_a_stamp_changes_with_a_study_s_files_and_description(tmp_path):
    source = str(write_cohort(tmp_path, 2, seed=1, spacing_mm=(20.0, 10.0, 10.0)))
    first = make_plan(config(source=source))
    assert make_plan(config(source=source)).stamps == first.stamps
    (tmp_path / "labelsTr" / "phantom_001.nii.gz").unlink()
    changed = make_plan(config(source=source))
    assert changed.identity == first.identity
    assert [name for name in first.stamps if first.stamps[name] != changed.stamps[name]] == [
        volume_id(first.job.key, one) for one in first.studies if one.key.endswith("001")
    ]


def test_what_is_neither_read_nor_quarantined_is_listed_with_what_to_do_and_no_name(tmp_path):
    source = write_cohort(tmp_path, 1, seed=1, spacing_mm=(20.0, 10.0, 10.0))
    for name in (
        "notes.txt",
        "more.txt",
        "report.Lovelace",
        "Ada/1.png",
        "Ada/scan.nii.gz",
        "IM0001",
        ".x/y.nii",
        "a.zip",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("text")
    said = make_plan(config(source=str(source))).left_out
    assert [one.describe(with_name=False) for one in said] == [
        "1 .nii.gz, such as */*.nii.gz: put it into imagesTr, imagesTs or images, or ingest it by --layout volumes",
        "1 .png, such as */*.png: ingest it by --layout class_folders or csv, without the labels (--images "
        "'imagesTr/*'): nnunet reads volumes",
        "2 .txt, such as *.txt: no scan: nothing to do",
        "1 .zip, such as *.zip: unpack it if it holds scans",
        "1 hidden file or folder, such as *: its name begins with a dot; rename it if it holds scans",
        "1 other, such as *: no reader knows it; convert scans to NIfTI, NRRD, DICOM, PNG or TIFF",
        "1 without suffix, such as *: if it is DICOM, ingest it by --layout dicom; else give it its format's suffix",
    ]
    assert said[0].describe(with_name=True).startswith("1 .nii.gz, such as Ada/scan.nii.gz: ")


def test_voxels_beside_their_header_and_tables_that_are_read_are_not_left_out(tmp_path):
    for name in ("a.hdr", "a.img", "b.mhd", "B.RAW", "c.raw", "films/t.csv", "films/0.png", "films/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "films" / "t.csv").write_text("file,label\n0.png,1\n")
    volumes = make_plan(config(source=str(tmp_path), layout="volumes"))
    assert [(one.kind, one.example) for one in volumes.left_out] == [
        (".csv", "films/t.csv"), (".png", "films/0.png"), (".raw", "c.raw"),
    ]  # fmt: skip
    for place in ("films", "films/t.csv"):
        table = make_plan(config(source=str(tmp_path / place), layout="csv", recipe="xray"))
        assert [(one.kind, one.example, one.remedy) for one in table.left_out] == [
            (".png", "1.png", "no row of the table names it: add a row")
        ]
    both = config(
        source=str(tmp_path), layout="volumes", also=({"source": str(tmp_path / "films"), "layout": "csv"},)
    )
    assert sum(one.count for one in make_plan(both).left_out if one.kind == ".png") == 2


@pytest.mark.parametrize("layout", ["csv", "npz"])
def test_a_file_may_be_a_source(tmp_path, layout):
    (tmp_path / "0.png").touch()
    for name in ("train", "valid"):
        (tmp_path / f"{name}.csv").write_text("file,label\n0.png,1\n")
        np.savez(tmp_path / f"{name}.npz", train_images=np.zeros((2, 4, 4), np.uint8))
    plan = make_plan(config(source=str(tmp_path / f"train.{layout}"), layout=layout, recipe="xray"))
    assert len(plan.studies) == {"csv": 1, "npz": 2}[layout]


def test_two_sources_with_the_same_studies_are_refused(tmp_path):
    source = str(write_cohort(tmp_path, 1, seed=1, spacing_mm=(20.0, 10.0, 10.0)))
    again = {"source": source, "layout": "nnunet"}
    with pytest.raises(ValueError, match=r"1 studies have the dataset and path of another.*different dataset names"):
        make_plan(config(source=source, also=(again,)))
    named = again | {"options": SourceOptions(dataset="other")}
    assert len(make_plan(config(source=source, also=(named,))).studies) == 2


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"recipe: there is no 'ct_abdomn' \(did you mean ct_abdomen_slices\?\); expected",
    ):
        config(recipe="ct_abdomn")


def test_a_study_keeps_its_bundle_whatever_its_label():
    studies = [study(n) for n in range(20)]
    labelled = [replace(s, label="a label") for s in studies]
    found = {s.patient: "train" for s in studies}
    keys = [[s.key for s in bundle.studies] for bundle in lay_out_bundles(studies, found, 0)]
    assert keys == [[s.key for s in bundle.studies] for bundle in lay_out_bundles(labelled, found, 0)]


def test_label_names_that_are_given_come_before_those_of_the_source(tmp_path):
    write_cohort(tmp_path, 1, seed=5, spacing_mm=(20.0, 10.0, 10.0))
    plain = make_plan(config(source=str(tmp_path)))
    named = make_plan(config(source=str(tmp_path), options=SourceOptions(label_names={1: "foie", 99: "tumour"})))
    assert plain.label_names[1] == "liver"
    assert named.label_names == {**plain.label_names, 1: "foie", 99: "tumour"}
    assert named.identity != plain.identity


def test_what_is_no_scan_is_named_and_takes_part_in_no_split_or_bundle(tmp_path):
    write_series(tmp_path / "s", np.diag([2.0, 2, 3, 1]))
    asked = config(source=str(tmp_path), layout="dicom", recipe="ct_volume")
    alone = make_plan(asked)
    for number in range(3):
        write_series(
            tmp_path / f"t{number}", np.diag([2.0, 2, 3, 1]), 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
        )
    plan = make_plan(asked)
    assert (plan.studies, plan.bundles, plan.identity) == (alone.studies, alone.bundles, alone.identity)
    assert len(plan.no_scans) == 3
    assert plan.left_out == ()
    assert (
        "left out: 3 x a localizer (ImageType LOCALIZER): nothing is to be done: it only plans a scan" in plan.remarks
    )


def test_a_source_of_nothing_but_localizers_says_so(tmp_path):
    write_series(tmp_path / "t", np.diag([2.0, 2, 3, 1]), 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(ValueError, match=r"0 studies; expected 1 or more; left out: 1 x a localizer"):
        make_plan(config(source=str(tmp_path), layout="dicom", recipe="ct_volume"))


@pytest.mark.parametrize("labels", [{"label": "a map"}, {"classes": (1,)}])
def test_of_copies_the_labelled_one_stays_whichever_source_it_comes_from(tmp_path, labels):
    plan = make_plan(config(source=str(write_cohort(tmp_path, 1, seed=1, spacing_mm=(20.0, 10.0, 10.0)))))
    studies = [study(0), study(1, **labels), study(2), study(3, label="a map", classes=(1,)), study(4)]
    names = [volume_id(plan.job.key, one) for one in studies]
    contents = dict(zip(names, ("x", "x", "y", "y", "y"), strict=True))
    ordered = in_stable_order(replace(plan, studies=studies), contents)
    assert duplicates(ordered) == {names[0]: names[1], names[2]: names[3], names[4]: names[3]}
