"""A bucket on a real S3 protocol server (moto's) on loopback, and its environment."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from data.files import _remote

KEY_ID, SECRET = "RAYDIOLOGYTEST", "the-secret-key-of-the-test"


@dataclass(frozen=True)
class Bucket:
    """An empty bucket: its address, and what a process must have in its environment to use it."""

    uri: str
    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": "127.0.0.1",
        }

    @property
    def client(self) -> Any:
        """An S3 client that is not Arrow's."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    @property
    def name(self) -> str:
        return self.uri.removeprefix("s3://")

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder into the bucket; return its address there."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.upload_file(str(path), self.name, f"{prefix}/{path.relative_to(folder).as_posix()}")
        return f"{self.uri}/{prefix}"

    def keys(self, prefix: str = "") -> list[str]:
        """List the names of the objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@contextmanager
def served(name: str = "radiology") -> Iterator[Bucket]:
    """Serve a new bucket on a free port; this process's environment names it meanwhile."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    bucket = Bucket(f"s3://{name}", f"http://{host}:{port}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in bucket.environment.items():
                patch.setenv(variable, value)
            bucket.client.create_bucket(Bucket=name)
            _remote.cache_clear()
            yield bucket
    finally:
        _remote.cache_clear()
        server.stop()
