"""Records and spools as a worker writes them, for the tests of the request log."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import uuid_utils

from gateway.configuration import Log
from gateway.log_table import LogTable
from gateway.records import RequestRecord, Status
from gateway.segment import MAGIC, Kind, encode, segment_name
from gateway.shipper import Shipper


def record(**fields: Any) -> RequestRecord:
    """A finished request; `fields` change it."""
    given: dict[str, Any] = {
        "request_id": str(uuid_utils.uuid7()),
        "ts": time.time_ns() // 1000,
        "endpoint": "chat",
        "tenant": "acme",
        "key_id": "key-1",
        "model": "small",
        "target": "vllm/small",
        "status": Status.OK,
        "http_status": 200,
        "input_tokens": 3,
        "output_tokens": 5,
        "cost_nano_usd": 7,
    }
    return RequestRecord(**(given | fields))


def final(one: RequestRecord, request: bytes = b"{}", response: bytes = b"{}") -> bytes:
    """Its final record as bytes."""
    return b"".join(encode(Kind.FINAL, orjson.dumps(one), request, response))


def intent(one: RequestRecord) -> bytes:
    """Its intent record as bytes."""
    meta = {"request_id": one.request_id, "ts": one.ts, "endpoint": one.endpoint,
            "model": one.model, "stream": one.stream}  # fmt: skip
    return b"".join(encode(Kind.INTENT, orjson.dumps(meta)))


def write_segment(
    spool: Path, *records: bytes, writer: str | None = None, sequence: int = 1
) -> Path:
    """A sealed segment of a writer that is gone."""
    (spool / "parts").mkdir(parents=True, exist_ok=True)
    path = spool / segment_name(writer or str(uuid_utils.uuid7()), sequence)
    path.write_bytes(MAGIC + b"".join(records))
    return path


def shipper_of(home: Path, log: Log | None = None, traces: Any = None) -> Shipper:
    """A shipper of the spool and the table under `home`."""
    os.makedirs(home / "spool" / "parts", exist_ok=True)
    return Shipper(home / "spool", LogTable(str(home / "log" / "requests")), log or Log(), traces)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Every write beyond `limit` bytes of a file fails, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
