"""An ingest whose bundles run in this process, not in Ray's tasks, which is all that differs from the command."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest

from data.shards.bundles import Bundle, BundleJob, run_bundle
from orchestrator.ingest import run


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(job: BundleJob, todo: Sequence[Bundle], readers: int | None) -> Iterator[int]:
        for bundle in todo:
            run_bundle(job, bundle)
            yield bundle.number

    monkeypatch.setattr(run, "run_bundles", in_this_process)
    monkeypatch.setattr(run, "connected", nullcontext)
