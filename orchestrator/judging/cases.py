"""Cases: the score of every single case as a Parquet file, on which comparisons between runs are built."""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
from pyarrow import parquet as pq

from methods.downstream.base import Cases

CASES = "cases.parquet"
Role = Literal["validation", "test"]


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
