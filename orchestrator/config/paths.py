"""Paths of a config: local ones become absolute, because Ray changes the folder of its workers."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from data.files import shown, without_credentials
from orchestrator.provenance import in_job


def absolute(uri: str) -> str:
    """Return a local path as an absolute one; leave addresses such as s3:// alone (Ray changes workers' folders).

    Raises ValueError for an empty path, and for a relative one in a submitted job, whose folder Ray deletes.
    """
    if not uri.strip():
        raise ValueError("the path is empty; name a folder or an address, or . for the current folder")
    if "://" in uri:
        return without_credentials(uri)
    path = Path(uri).expanduser()
    if in_job() and not path.is_absolute():
        raise ValueError(
            f"{uri} is relative, so in a job it would lie in the copy of the working directory, which the cluster "
            "deletes; give an absolute folder that every node reaches and that outlives the job, or s3://bucket/folder"
        )
    return str(path.absolute())


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(
            f"{shown(path)} is remote; expected a folder of the machine that the command runs on; checkpoints go to "
            "a bucket by resources.storage, MLflow to a server by tracking.uri"
        )
    return path


AbsolutePath = Annotated[str, AfterValidator(absolute)]
LocalPath = Annotated[str, AfterValidator(_local), AfterValidator(absolute)]
