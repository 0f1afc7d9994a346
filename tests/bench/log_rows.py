"""A request log with many rows, made the way that workers and the shipper make it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson
import uuid_utils

from gateway.configuration import Log, parse_configuration
from gateway.records import RequestRecord, Status
from gateway.settings import Settings
from gateway.shipper import Shipper, open_table, spool_lock
from gateway.spool import Spool

BATCH_ROWS = 50_000
DAYS = 7
DAY_SECONDS = 86_400
MODELS = ("chat", "chat-large", "embed", "vision", "tiny")
RECORD = RequestRecord(
    request_id="",
    ts=0,
    endpoint="chat",
    tenant="default",
    team="search",
    key_id="01900000-0000-7000-8000-000000000000",
    target="upstream/model",
    status=Status.OK,
    http_status=200,
    finish_reason="stop",
    ttft_ms=21.5,
    latency_ms=840.25,
    overhead_ms=0.21,
    usage_source="upstream",
    price_version="stated-0123abcd",
    config_hash="0123456789ab",
)


@dataclass(frozen=True, slots=True)
class Shipped:
    """What the shipper took, and some of the ids that are in the table now."""

    rows: int
    seconds: float
    cpu_seconds: float
    ids: list[str]


def fill_log(settings: Settings, rows: int, say: Callable[[str], None]) -> Shipped:
    """Append `rows` records of the last week, oldest first, and ship them; takes a minute or so."""
    log = parse_configuration(settings.config_path.read_text()).log
    shipper = Shipper(settings.spool_dir, open_table(settings, log), log)
    ids: list[str] = []
    shipped, seconds, cpu = 0, 0.0, 0.0
    with spool_lock(settings.spool_dir):
        for first in range(0, rows, BATCH_ROWS):
            count = min(BATCH_ROWS, rows - first)
            ids.append(_append(settings, log, first, count=count, of=rows))
            started, started_cpu = time.monotonic(), time.process_time()
            shipped += shipper.ship()
            shipper.tidy()
            seconds += time.monotonic() - started
            cpu += time.process_time() - started_cpu
            say(f"log rows: {shipped:,} of {rows:,}")
    return Shipped(shipped, seconds, cpu, ids)


def _append(settings: Settings, log: Log, first: int, *, count: int, of: int) -> str:
    """Write one batch to the spool as a worker does; returns one of its ids."""
    spool = Spool(settings.spool_dir, log)
    chosen = random.Random(first)
    start = time.time() - DAYS * DAY_SECONDS
    record = RECORD
    for number in range(first, first + count):
        moment = start + DAYS * DAY_SECONDS * number / of
        record = _record(moment, chosen)
        spool.finish(record, *_bodies(record, number))
    spool.close()
    return record.request_id


def _record(moment: float, chosen: random.Random) -> RequestRecord:
    second, rest = divmod(moment, 1)
    tokens = chosen.randrange(20, 2000)
    return replace(
        RECORD,
        request_id=str(uuid_utils.uuid7(timestamp=int(second), nanos=int(rest * 1e9))),
        ts=int(moment * 1_000_000),
        model=chosen.choice(MODELS),
        user=f"user-{chosen.randrange(1000)}",
        input_tokens=tokens,
        output_tokens=tokens // 3,
        cost_nano_usd=tokens * 1500 + tokens // 3 * 6000,
    )


def _bodies(record: RequestRecord, number: int) -> tuple[bytes, bytes]:
    question = {"role": "user", "content": f"Question {number}: what is the weather tomorrow?"}
    answer = {"role": "assistant", "content": f"Answer {number}: " + "fair, with some wind " * 8}
    request = orjson.dumps({"model": record.model, "messages": [question]})
    return request, orjson.dumps({"id": record.request_id, "choices": [{"message": answer}]})
