"""Shards and checkpoints in a bucket, on a real S3 protocol server (moto's) on loopback."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from data.files import StorageError, _remote, check_writable, list_tree, read_bytes
from data.labels import LABEL_MAP
from data.phantoms.abdomen import write_cohort
from data.recipes import RECIPES
from data.shards.bundles import preprocess
from data.shards.check import verify
from data.shards.index import ShardSet
from data.shards.reader import ShardReader
from data.shards.writer import ShardError, write_atomically
from data.sources import SourceOptions, find_studies
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.history import Tail
from orchestrator.ingest.request import IngestConfig
from tests import clusters
from tests.buckets import SECRET, Bucket, served
from tests.experiments import ONE_READER, UNET, tiny_experiment, tiny_segmentation
from tests.shardsets import write_slices
from tests.waiting import wait_for_step

COMMAND = [sys.executable, "-m", "orchestrator.cli"]
# Arrow asks again for six seconds before it gives up on a server.
GIVES_UP_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with served() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def shards(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> str:
    return bucket.upload(Path(write_slices(tmp_path_factory.mktemp("slices"))), "slices")


@pytest.mark.slow
def test_shards_in_a_bucket_are_those_on_disk(bucket: Bucket, shards: str, tmp_path: Path) -> None:
    local, remote = ShardSet.open(write_slices(tmp_path)), ShardSet.open(shards)
    assert remote.digest == local.digest
    ids = np.array([5, 0, 17], np.int64)
    assert ShardReader(remote, LABEL_MAP).read(ids).equals(ShardReader(local, LABEL_MAP).read(ids))
    assert list(verify(shards)) == []


@pytest.mark.slow
def test_shards_are_written_to_a_bucket_as_to_a_disk(bucket: Bucket, tmp_path: Path) -> None:
    write_slices(f"{bucket.uri}/written")
    write_slices(tmp_path)
    written = {key.removeprefix("written/"): key for key in bucket.keys("written/") if not key.endswith("/")}
    assert {path.name for path in tmp_path.iterdir()} == set(written)
    for name in written:
        assert read_bytes(f"{bucket.uri}/written/{name}") == (tmp_path / name).read_bytes()


@pytest.mark.slow
def test_a_damaged_and_a_missing_shard_of_a_bucket_are_named(bucket: Bucket, tmp_path: Path) -> None:
    shards = bucket.upload(Path(write_slices(tmp_path)), "damaged")
    train, val = sorted(key for key in bucket.keys("damaged/train") + bucket.keys("damaged/val"))
    content = bytearray(read_bytes(f"{bucket.uri}/{train}"))
    content[len(content) // 2] ^= 1
    bucket.client.put_object(Bucket=bucket.name, Key=train, Body=bytes(content))
    bucket.client.delete_object(Bucket=bucket.name, Key=val)
    findings = list(verify(shards))
    assert any(f"{train.split('/')[1]}: content hash" in finding for finding in findings)
    assert any(f"{val.split('/')[1]}: missing" in finding for finding in findings)
    with pytest.raises(ShardError, match="missing; expected beside its index"):
        ShardReader(ShardSet.open(shards)).read(ShardSet.open(shards).select("val").row_ids[:1])


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_named_before_anything_is_written(bucket: Bucket) -> None:
    with pytest.raises(StorageError, match="s3://elsewhere: no such bucket; expected an existing bucket; create it"):
        check_writable("s3://elsewhere/checkpoints", "resources.storage")
    with pytest.raises(StorageError, match="s3://elsewhere: no such bucket"):
        write_atomically("s3://elsewhere/index.parquet", b"content")
    with pytest.raises(ShardError, match=r"no index\.parquet; .* check the path"):
        ShardSet.open("s3://elsewhere/shards")


def test_writing_is_tried_without_leaving_anything(bucket: Bucket) -> None:
    check_writable(f"{bucket.uri}/tried", "resources.storage")
    assert [key for key in bucket.keys("tried") if not key.endswith("/")] == []


@pytest.fixture
def unreachable(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name a port where nobody listens."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _remote.cache_clear()
    yield
    _remote.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(GIVES_UP_WITHIN_S)
def test_a_server_that_does_not_answer_is_named_within_seconds(unreachable: None) -> None:
    with pytest.raises(
        StorageError, match=r"s3://radiology: cannot be reached; .* AWS_ENDPOINT_URL http://127\.0\.0\.1:9"
    ):
        ShardSet.open("s3://radiology/slices")


def test_credentials_that_the_server_does_not_know_are_refused_in_words(bucket: Bucket) -> None:
    _check_credentials(bucket, after=0)
    try:
        with pytest.raises(StorageError, match=r"access denied .* set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            list_tree(f"{bucket.uri}/slices")
    finally:
        _check_credentials(bucket, after=float("inf"))


def _check_credentials(bucket: Bucket, after: float) -> None:
    """Have moto check credentials after some more requests."""
    request = urllib.request.Request(
        f"{bucket.endpoint}/moto-api/reset-auth", str(after).encode(), {"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.mark.slow
def test_a_study_whose_bucket_does_not_answer_is_not_quarantined(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(str(tmp_path), 1, 0, seed=0)
    source = bucket.upload(tmp_path / "imagesTr", "scans")
    (study,) = find_studies(source, "volumes", SourceOptions(modality="CT"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _remote.cache_clear()
    with pytest.raises(StorageError, match="s3://radiology: cannot be reached"):
        preprocess(RECIPES["ct_abdomen_slices"], study)
    _remote.cache_clear()


@pytest.mark.parametrize("field", ["data.shards", "resources.storage", "downstream.shards"])
def test_credentials_in_an_address_are_refused_without_showing_them(field: str) -> None:
    tree = _experiment("s3://radiology/slices", Path("home"))
    with pytest.raises(ConfigError, match=r"s3://radiology/x was given with credentials") as refusal:
        resolve(tree, [f"{field}=s3://KEYID:hidden@radiology/x"])
    assert "hidden" not in str(refusal.value)


def test_credentials_in_an_ingest_s_addresses_are_refused() -> None:
    with pytest.raises(ValidationError, match="was given with credentials in it"):
        IngestConfig(source="s3://KEYID:hidden@b/x", layout="volumes", recipe="ct_abdomen_slices", out="shards")


def test_a_home_in_a_bucket_is_refused_with_where_checkpoints_go() -> None:
    with pytest.raises(ConfigError, match=r"home: s3://radiology/runs is remote; .* resources\.storage"):
        resolve(_experiment("s3://radiology/slices", Path("home")), ["home=s3://radiology/runs"])


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scans_become_scores_through_a_bucket_and_a_killed_job_goes_on_from_there(
    bucket: Bucket, tmp_path: Path
) -> None:
    write_cohort(tmp_path / "scans", 4)
    source, shards = bucket.upload(tmp_path / "scans", "cohort"), f"{bucket.uri}/ingested"
    file, home = tmp_path / "bucket.yaml", tmp_path / "home"
    file.write_text(yaml.safe_dump(_experiment(shards, home)))
    storage = f"resources.storage={bucket.uri}/checkpoints"
    variables = {**bucket.environment, "RAYDIOLOGY_HOME": str(tmp_path)}
    with clusters.nodes(8, environment=variables) as environment:
        ingest = ["ingest", "--source", source, "--layout", "nnunet", "--modality", "CT", "--out", shards]
        ingest += ["--recipe", "ct_abdomen_slices", "--set", "spacing_mm=[5,3,3]", "--val-fraction", "0.5"]
        assert "4 of 4 studies written" in _run(environment, *ingest)
        assert list(verify(shards)) == []
        killed = subprocess.Popen([*COMMAND, "pretrain", str(file), storage], cwd=clusters.ROOT, env=environment)
        history = wait_for_step(home, 4, killed)
        killed.kill()
        killed.wait(30)
        said = _run(environment, "finetune", str(file), storage)
        kept = history.read_bytes(), b"".join(_contents(home))
        shutil.rmtree(home)  # as where a machine of a cloud is gone
        again = _run(environment, "finetune", str(file), storage)
        logs = b"".join(_contents(Path(environment["RAY_TMPDIR"]), (".log", ".out", ".err")))
    assert re.search(r"dice_mean +0\.\d{4}", said)
    entries = [entry for entry in Tail(history).read() if "step" in entry]
    first, last = ({entry["step"]: entry for entry in part} for part in (reversed(entries), entries))
    assert sorted(last) == list(range(8))
    assert [first[step]["samples"] for step in range(8)] == [last[step]["samples"] for step in range(8)]
    assert [first[step]["loss"] for step in range(8)] == [last[step]["loss"] for step in range(8)]
    encoder = json.loads((history.parent / "result.json").read_text())["encoder"]
    assert encoder == f"{bucket.uri}/checkpoints/{history.parent.name}/pretrain/step_000000008"
    assert f"{encoder.removeprefix(bucket.uri + '/')}/encoder.safetensors" in bucket.keys("checkpoints")
    assert _scores(again) == _scores(said)
    assert history.read_bytes() == kept[0]
    assert SECRET.encode() not in b"".join([kept[1], *_contents(home), logs, said.encode(), again.encode()])


def _scores(said: str) -> list[tuple[str, str]]:
    """Return the scores that a fine-tuning has printed."""
    found = re.findall(r"^([\w/]+) +(\d+\.\d{4})$", said, re.MULTILINE)
    assert "dice_mean" in dict(found)
    return found


def _contents(folder: Path, suffixes: tuple[str, ...] = ()) -> list[bytes]:
    """Return the content of every file below a folder, or of those with some suffixes."""
    files = [path for path in folder.rglob("*") if path.is_file() and (not suffixes or path.suffix in suffixes)]
    assert files, f"there are files in {folder}"
    return [path.read_bytes() for path in files]


def _run(environment: dict[str, str], *arguments: str) -> str:
    """Run a command to its end; return what it said."""
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=clusters.ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _experiment(shards: str, home: Path) -> dict[str, Any]:
    training = {"report_every_steps": 1, "checkpoint_every_steps": 2}
    downstream = tiny_segmentation(shards, steps=2)
    return tiny_experiment("bucket", shards, home, 8, UNET, training=training, downstream=downstream, **ONE_READER)
