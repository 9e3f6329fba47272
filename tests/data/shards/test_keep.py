"""A filter over samples: each criterion leaves out what it names, and says how many samples it leaves out."""

import pytest

from data.shards.index import ShardSet
from data.shards.keep import Keep
from tests.shardsets import write_odd_sizes


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Every third picture has 20 pixels instead of 40, 1.1 mm instead of 1 mm, and is MR of dataset ``odd``."""
    return ShardSet.open(write_odd_sizes(tmp_path_factory.mktemp("odd")))


OTHERS, ODD = [1, 2, 4, 5, 7, 8, 10, 11], [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("criteria", "kept"),
    [
        ({}, list(range(12))),
        ({"min_size": 21}, OTHERS),
        ({"min_size": [20, 40]}, OTHERS),
        ({"min_size": 20}, list(range(12))),
        ({"max_spacing_mm": 1.0}, OTHERS),
        ({"max_spacing_mm": [1.1, 1.1]}, list(range(12))),
        ({"modalities": ["MR"]}, ODD),
        ({"modalities": ["MR", "XR"], "datasets": ["test"]}, OTHERS),
        ({"datasets": ["odd"], "min_size": 40}, []),
    ],
)
def test_samples_that_meet_all_criteria_are_kept(shards: ShardSet, criteria: dict, kept: list[int]) -> None:
    selection = shards.select("train", keep=Keep.model_validate(criteria))
    assert selection.row_ids.tolist() == kept
    assert selection.num_left_out == 12 - len(kept)


def test_each_criterion_says_how_many_samples_it_leaves_out(shards: ShardSet) -> None:
    keep = Keep(min_size=40, modalities=("MR", "XR"), datasets=("odd",))
    left_out = shards.select("train", keep=keep).left_out_by
    assert left_out == {"min_size": 4, "modalities": 0, "datasets": 8}
    assert keep.describe(left_out) == (
        "min_size=40 leaves out 4, modalities=['MR', 'XR'] leaves out 0, datasets=['odd'] leaves out 8"
    )


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"min_size": [9, 9, 9]}, r"keep.min_size \[9, 9, 9\] has 3 axes, the samples have 2; give one number"),
        ({"max_spacing_mm": [1.5]}, r"keep.max_spacing_mm \[1.5\] has 1 axes, the samples have 2"),
        ({"datasets": ["odd", "od"]}, r"keep.datasets names od, which no sample has; expected some of odd, test"),
        ({"modalities": ["CT"]}, r"keep.modalities names CT, which no sample has; expected some of MR, XR"),
        ({"min_size": 0}, "greater than 0"),
        ({"datasets": []}, "at least 1 item"),
    ],
)
def test_a_filter_that_cannot_fit_is_refused(shards: ShardSet, criteria: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shards.select(keep=Keep.model_validate(criteria))
