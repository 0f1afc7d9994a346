"""The shipper: commits the spool's sealed segments to the log table, each record exactly once.

Run as `python -m gateway.shipper`; one for a spool folder, held by a lock. A batch goes through:
fix its segments and number on disk, commit rows and number in one Delta transaction, remove the
segments, remove the manifest. After a crash at any instant the manifest and the table's newest
number tell which of these steps are left. Retention, compaction and erasure run here too, between
commits, because a rewrite beside a writer would conflict.
"""

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType

import orjson
from deltalake.exceptions import CommitFailedError

from gateway import orders, retention
from gateway.batches import Batch, Batches, Reading, Tally
from gateway.configuration import Log, load_configuration
from gateway.erasures import Erasure, Erasures
from gateway.log_columns import Row
from gateway.log_table import LogTable, TableError
from gateway.request_log import LogReader
from gateway.settings import Settings, load_settings
from gateway.traces import TraceSender

LOCK = "lock"
ALIVE = "shipper.alive"
STATUS = "shipper.json"
TICK_SECONDS = 0.5
HOUR_SECONDS = 3600
CONFLICT_RETRIES = 5
_log = logging.getLogger(__name__)


class SpoolTaken(RuntimeError):
    """Another process ships this spool."""


@contextmanager
def spool_lock(folder: Path) -> Iterator[None]:
    """Be the one shipper of a spool folder. Raises SpoolTaken if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            raise SpoolTaken(
                f"{folder} already has a shipper (process {holder}); one at a time may ship it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


class Shipper:
    """Ships one spool to one table. To be used under `spool_lock`."""

    def __init__(self, spool: Path, table: LogTable, log: Log, traces: TraceSender | None = None):
        self.spool = spool
        self.table = table
        self.log = log
        self.total = Tally()
        self._batches = Batches(spool)
        self._erasures = Erasures(spool)
        self._traces = traces

    def ship(self) -> int:
        """Commit everything that is sealed; returns the number of rows. Raises `TableError`."""
        rows = 0
        while (batch := self._next_batch()) is not None:
            rows += self._commit(batch)
            self._batches.clean(batch)
        self._batches.remove_stale()
        return rows

    def obey(self, order: orders.Order) -> orders.Outcome:
        """Carry out an order on the table."""
        if order.kind == "compact":
            return retention.compact(self.table)
        if order.kind == "retain":
            return retention.retain(self.table, self.log, self.spool)
        erasure = Erasure(order.user or "", order.before)
        self.ship()
        self._erasures.add(erasure)
        spans = self._forget_spans(erasure)
        outcome = retention.erase(self.table, erasure, self.spool, delete_rows=order.delete_rows)
        return {**outcome, "spans": spans}

    def _forget_spans(self, erasure: Erasure) -> int | str:
        """How many spans were deleted; text, if they could not be: then that is left to do."""
        if self._traces is None:
            return 0
        reader = LogReader(self.spool, self.table.uri, self.table.storage_options)
        condition = '"user" = ? AND ts <= make_timestamptz(?)'
        rows = reader.rows(
            condition, [erasure.user, erasure.before], columns=["request_id"], order="ts"
        )
        try:
            return self._traces.forget([row["request_id"] for row in rows])
        except OSError as error:
            return f"not deleted: {error}"

    def tidy(self) -> None:
        """Keep the number of files low, so that reading stays quick."""
        crowded = self.table.crowded_days()
        if crowded:
            self.table.compact(crowded)
            self.table.vacuum()

    def keep_house(self) -> None:
        """What is due every hour: ages, and one file for each day that is over."""
        retention.retain(self.table, self.log, self.spool)
        today = datetime.now(UTC).date().isoformat()
        over = [day for day in self.table.crowded_days(2) if day < today]
        if over:
            self.table.compact(over)
            self.table.vacuum()

    def _next_batch(self) -> Batch | None:
        pending = self._batches.pending()
        if pending is not None:
            return pending
        return self._batches.fix(self.table.last_batch(self._batches.app_id) + 1)

    def _commit(self, batch: Batch) -> int:
        for _attempt in range(CONFLICT_RETRIES):
            if self.table.last_batch(batch.app_id) >= batch.number:
                return 0
            sampled: list[Row] = []
            reading = Reading(visit=partial(self._visit, sampled))
            try:
                self.table.append(self._batches.tables(batch, reading), batch.app_id, batch.number)
            except CommitFailedError as error:
                _log.warning("batch %d: another commit was faster: %s", batch.number, error)
                continue
            self._note(batch, reading.tally)
            if self._traces is not None:
                self._traces.offer(sampled)
            return reading.tally.rows
        raise CommitFailedError(f"batch {batch.number} met {CONFLICT_RETRIES} conflicting commits")

    def _visit(self, sampled: list[Row], row: Row) -> None:
        self._erasures.apply(row)
        if self._traces is not None and self._traces.wants(row):
            sampled.append(row)

    @property
    def spans(self) -> dict[str, int]:
        """How many spans were sent and dropped."""
        traces = self._traces
        return {} if traces is None else {"spans": traces.sent, "spans_dropped": traces.dropped}

    def _note(self, batch: Batch, tally: Tally) -> None:
        self.total.add(tally)
        if tally.damaged or tally.unstorable:
            _log.error(
                "batch %d: %d damaged stretches (%d bytes) and %d unstorable records are in %s",
                batch.number, tally.damaged, tally.damaged_bytes, tally.unstorable,
                self.spool / "quarantine",
            )  # fmt: skip


class Service:
    """The shipper as a process: a loop with a heartbeat, orders and housekeeping."""

    def __init__(self, shipper: Shipper, run: Path):
        self._shipper = shipper
        self._run = run
        self._stopped = threading.Event()
        self._housekept = 0.0

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Make `serve` return after one last round."""
        self._stopped.set()

    def serve(self) -> None:
        """Ship every `commit_seconds` until stopped; a table that fails is tried again."""
        self._run.mkdir(parents=True, exist_ok=True)
        pause = self._shipper.log.commit_seconds
        failures = 0
        while True:
            last = self._stopped.is_set()
            try:
                self._round()
                failures = 0
            except TableError as error:
                failures += 1
                _log.error("the log table cannot be written, the spool keeps it: %s", error)
            self._report(failures)
            if last:
                return
            self._wait(min(pause * 2 ** min(failures, 5), 60))

    def _round(self) -> None:
        self._shipper.ship()
        for path, order in list(orders.waiting(self._run)):
            orders.report(path, self._outcome(order))
        if time.monotonic() - self._housekept > HOUR_SECONDS or not self._housekept:
            self._housekept = time.monotonic()
            self._shipper.keep_house()
        self._shipper.tidy()

    def _outcome(self, order: orders.Order) -> orders.Outcome:
        try:
            outcome = self._shipper.obey(order)
        except TableError as error:
            _log.error("%s failed: %s", order.kind, error)
            return {orders.ERROR: str(error)}
        _log.info("%s: %s", order.kind, outcome)
        return outcome

    def _report(self, failures: int) -> None:
        counted = {**asdict(self._shipper.total), **self._shipper.spans}
        status = {"pid": os.getpid(), "failures": failures, **counted}
        fresh = self._run / f".{STATUS}"
        with suppress(OSError):
            fresh.write_bytes(orjson.dumps(status))
            fresh.rename(self._run / STATUS)
            (self._run / ALIVE).touch()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopped.is_set() and (left := deadline - time.monotonic()) > 0:
            self._stopped.wait(min(left, TICK_SECONDS))
            if any((self._run / orders.FOLDER).glob("*.json")):
                return
            with suppress(OSError):
                (self._run / ALIVE).touch()


def open_table(settings: Settings, log: Log) -> LogTable:
    """The table that the configuration names, or the default one under LLMOPS_HOME."""
    return LogTable(log.table or settings.log_table, log.storage_options)


def main() -> None:
    """Ship until SIGTERM or SIGINT, then once more."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load_settings()
    configuration = load_configuration(settings.config_path)
    table = open_table(settings, configuration.log)
    with spool_lock(settings.spool_dir):
        traces = TraceSender.start(configuration.traces)
        shipper = Shipper(settings.spool_dir, table, configuration.log, traces)
        service = Service(shipper, settings.home / "run")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, service.stop)
        _log.info("shipping %s to %s", settings.spool_dir, table.uri)
        service.serve()
        if traces is not None:
            traces.close()


if __name__ == "__main__":
    try:
        main()
    except SpoolTaken as taken:
        raise SystemExit(str(taken)) from None
