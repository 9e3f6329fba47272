"""How a batch is shared out over workers and passed in chunks, and what is said if workers stay idle."""

import pytest

from orchestrator.config.sharing import Shares


@pytest.mark.parametrize(
    ("batch_size", "most", "workers", "samples"),
    [(4, 8, 4, 1), (1, 8, 1, 1), (12, 8, 6, 2), (8, 8, 8, 1), (8, 3, 2, 4), (7, 4, 1, 7), (32, 1, 1, 32)],
)
def test_as_many_workers_train_as_can_share_a_batch_evenly(batch_size, most, workers, samples):
    shares = Shares(batch_size, most)
    assert (shares.workers, shares.samples) == (workers, samples)


@pytest.mark.parametrize(
    ("batch_size", "most", "words"),
    [
        (12, 8, "over resources.workers 8: 6 workers train; a batch of 8 or 16 would use all 8"),
        (4, 8, "over resources.workers 8: 4 workers train; a batch of 8 would use all 8"),
        (1, 8, "over resources.workers 8: 1 worker trains; a batch of 8 would use all 8"),
    ],
)
def test_idle_workers_are_named_with_the_batches_that_would_use_all(batch_size, most, words):
    found = Shares(batch_size, most).remark("budget.batch_size")
    assert found == f"budget.batch_size {batch_size} cannot be shared out evenly {words}"


def test_nothing_is_said_where_all_workers_train():
    assert Shares(8, 4).remark("budget.batch_size") is None


@pytest.mark.parametrize(("micro_batch_size", "chunks"), [(None, 1), (1, 6), (2, 3), (4, 2), (6, 1), (100, 1)])
def test_a_share_is_passed_in_chunks_of_at_most_a_micro_batch(micro_batch_size, chunks):
    assert Shares(12, 2, micro_batch_size).num_chunks == chunks


def test_the_number_of_workers_that_need_no_chunks_shares_the_batch_out_evenly():
    assert [Shares(12, 2, size).workers_without_chunks for size in (1, 2, 4, 5, 6)] == [12, 6, 3, 3, 2]
