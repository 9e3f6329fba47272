"""Patients are split exactly, evenly over classes, and alike in every process."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.splits import assign_splits, check_no_leakage, even_order, folds, label_fraction, seeded_order

patients = st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=60)
seeds = st.integers(0, 99)
fractions = st.floats(0, 0.49)


@pytest.mark.slow
@settings(deadline=None)
@given(patients, fractions, fractions, seeds)
def test_splits_have_their_exact_sizes(names, val, test, seed):
    found = list(assign_splits(dict.fromkeys(names, ""), val, test, seed).values())
    assert len(found) == len(names)
    assert found.count("test") == round(Fraction(str(test)) * len(names))
    assert found.count("val") == round(Fraction(str(val)) * len(names))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), fractions, seeds)
def test_each_class_gets_its_share_within_one_patient(classes, fraction, seed):
    strata = {f"p{number}": label for number, label in enumerate(classes)}
    splits = assign_splits(strata, 0.0, fraction, seed)
    rate = round(fraction * len(classes)) / len(classes)
    for label in set(classes):
        members = [name for name, stratum in strata.items() if stratum == label]
        assert abs(sum(splits[name] == "test" for name in members) - rate * len(members)) <= 1 + 1e-9


@settings(deadline=None)
@given(patients, seeds)
def test_splits_do_not_depend_on_the_order_of_patients(names, seed):
    forward = dict.fromkeys(sorted(names), "")
    backward = dict.fromkeys(sorted(names, reverse=True), "")
    assert assign_splits(forward, 0.2, 0.3, seed) == assign_splits(backward, 0.2, 0.3, seed)
    assert seeded_order(sorted(names), seed) == seeded_order(sorted(names, reverse=True), seed)


def test_the_split_of_version_1_never_changes():
    """Golden: a change here would move patients between the splits of published results."""
    splits = assign_splits({f"p{number}": "" for number in range(8)}, 0.25, 0.25, 7)
    assert sorted(name for name, split in splits.items() if split == "test") == ["p1", "p7"]
    assert sorted(name for name, split in splits.items() if split == "val") == ["p3", "p4"]


@settings(deadline=None)
@given(st.integers(2, 60), st.data(), seeds)
def test_folds_are_a_partition_into_nearly_equal_parts(num_patients, data, seed):
    names = {f"p{number}": number % 3 for number in range(num_patients)}
    parts = folds(names, data.draw(st.integers(2, num_patients)), seed)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for stratum in range(3):
        held = [sum(names[name] == stratum for name in part) for part in parts]
        assert max(held) - min(held) <= 1


@settings(deadline=None)
@given(patients, st.floats(0.001, 1), st.floats(0.001, 1), seeds)
def test_a_smaller_label_fraction_is_part_of_a_larger_one(names, a, b, seed):
    strata = {name: len(name) for name in names}
    small, large = (label_fraction(strata, fraction, seed) for fraction in sorted((a, b)))
    assert small <= large
    assert len(large) == max(1, round(Fraction(str(max(a, b))) * len(names)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), seeds)
def test_every_label_fraction_holds_each_class_s_share(classes, seed):
    strata = {f"p{number}": label for number, label in enumerate(classes)}
    order = even_order(strata, seed)
    assert sorted(order) == sorted(strata)
    for label in set(classes):
        share = classes.count(label) / len(classes)
        for size in range(1, len(order) + 1):
            held = sum(strata[name] == label for name in order[:size])
            assert abs(held - share * size) <= (1 + share * len(set(classes))) / 2 + 1e-9


@settings(deadline=None)
@given(patients, seeds)
def test_without_classes_the_order_of_labels_is_the_seed_s(names, seed):
    assert even_order(dict.fromkeys(names, ()), seed) == seeded_order(names, seed)


def test_fractions_of_all_labels_keep_all_and_tiny_ones_keep_one():
    names = {f"p{number}": () for number in range(50)}
    assert label_fraction(names, 1.0, 3) == names.keys()
    assert len(label_fraction(names, 0.001, 3)) == 1


def test_fractions_are_those_that_were_written():
    names = {f"p{number}": () for number in range(100)}
    assert 0.575 * 100 < 57.5
    assert len(label_fraction(names, 0.575, 0)) == 58
    assert [*assign_splits(names, 0.0, 0.575, 0).values()].count("test") == 58


def test_a_patient_in_two_splits_is_named():
    check_no_leakage({"train": ["p-1", "p-2"], "val": ["p-3"]})
    with pytest.raises(ValueError, match=r"1 patients are in both train \(2 patients\) and val \(2\), such as p-2"):
        check_no_leakage({"train": ["p-1", "p-2"], "val": ["p-2", "p-3"]})


def test_fractions_that_leave_no_training_patients_are_errors():
    with pytest.raises(ValueError, match=r"val 0.5 and test 0.5; expected .* sum is below 1"):
        assign_splits({"p": ""}, 0.5, 0.5, 0)
    with pytest.raises(ValueError, match=r"5 folds of 3 patients.*lower downstream.num_folds"):
        folds(dict.fromkeys("abc"), 5, 0)
    with pytest.raises(ValueError, match=r"label fraction 0.0; expected above 0"):
        label_fraction({"a": ()}, 0.0, 0)
    with pytest.raises(ValueError, match=r"0 labelled patients; expected at least 1"):
        label_fraction({}, 0.5, 0)
