"""Cases: the score of every single case as a Parquet file, on which comparisons between runs are built."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow import parquet as pq

from data.shards.index import ShardSet
from methods.downstream.base import Cases

CASES = "cases.parquet"
Role = Literal["validation", "test"]


def with_patients(cases: Cases, shards: ShardSet, row_ids: Int[np.ndarray, " n"]) -> Cases:
    """Return cases with the pseudonym of each one's patient, behind the case; as they are where there is none.

    A case is a sample, a volume of slices, or a plane of one of the two: ``SAMPLE/00012``.
    """
    if not cases:
        return cases
    held = shards.rows.select(["sample_id", "volume", "patient"]).take(row_ids).to_pydict()
    patients = dict(zip([*held["volume"], *held["sample_id"]], held["patient"] * 2, strict=True))
    names = [str(case) for case in cases["case"]]
    owners = [patients.get(name) or patients[name.rpartition("/")[0]] for name in names]
    return {"case": names, "patient": owners, **{name: own for name, own in cases.items() if name != "case"}}


def to_parquet(role: Role, cases: Cases) -> bytes:
    """Return cases as a Parquet file; the column ``split`` holds their role, and NaN becomes null."""
    columns = {name: pa.array(values, from_pandas=True) for name, values in cases.items()}
    first = pa.array([role] * len(cases["case"]), pa.string())
    return _written(pa.table({"split": first, **columns}))


def joined(files: Sequence[bytes]) -> bytes:
    """Return the cases of several files of one task as one file, in the order of the files."""
    return _written(pa.concat_tables([pq.read_table(pa.BufferReader(file)) for file in files]))


def _written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
