"""A stand-in for S3 (moto), as a child process over a real socket, with one bucket."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3

from tests.gateway_process import free_port

BUCKET = "kept"
READY_SECONDS = 60.0
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
START = "import sys; from moto.server import main; main(sys.argv[1:])"


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """It runs during the block; gives its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "s3.out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", START, "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(url, process, folder)
        _client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        process.kill()
        process.wait()


def names_in(url: str, prefix: str) -> list[str]:
    """Of the bucket's objects."""
    found = _client(url).list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [one["Key"] for one in found.get("Contents", [])]


def _client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )


def _wait(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(f"{url}/moto-api/", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"S3's stand-in is not ready:\n{(folder / 's3.out').read_text()}")
