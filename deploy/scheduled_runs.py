"""Runs of scheduled jobs: one of each job at a time, each with a row that says how it went.

A job's place is a lock on a file that the run's process holds, too: it is free when the last of
them is gone, whoever was killed. A row that still says `running` then is of a run that was cut off.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import uuid_utils
from sqlalchemy import select

from gateway.database import Database, now
from pipelines.tables import ScheduledRunRow

RUNNING, DONE, FAILED = "running", "done", "failed"
INTERRUPTED, REFUSED = "interrupted", "refused"
MESSAGE_CHARACTERS = 2000


class UnderWay(RuntimeError):
    """Another run of the job is under way."""


@dataclass(frozen=True, slots=True)
class Firing:
    """A run that is due.

    Attributes:
        job: name of the job, or what else wants a command to run.
        missed: moments before this one that went by unused.
    """

    job: str
    command: Sequence[str]
    due: datetime
    timeout_seconds: float
    missed: int = 0


class ScheduledRuns:
    """The runs of one home."""

    def __init__(self, database: Database, run_dir: Path):
        self._database = database
        self._run_dir = run_dir

    @contextmanager
    def place(self, job: str) -> Iterator[int]:
        """Hold the one place of `job`; gives the lock's descriptor, for the process to hold too.

        Raises: UnderWay.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._run_dir / f"job-{quote(job, safe='')}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UnderWay(f"a run of {job} is under way; see: llmops schedule status") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def begin(self, firing: Firing) -> str:
        """Write that a run begins; the caller holds the job's place. Returns the run's id."""
        running = select(ScheduledRunRow).where(
            ScheduledRunRow.job == firing.job, ScheduledRunRow.state == RUNNING
        )
        with self._database.transaction() as session:
            for row in session.scalars(running):
                row.state, row.ended_at = INTERRUPTED, now()
                row.message = "its process was cut off"
            session.flush()
            row = _row(firing, RUNNING, None)
            session.add(row)
        return row.run_id

    def end(self, run_id: str, state: str, exit_code: int | None, message: str | None) -> None:
        """Write how a run ended."""
        with self._database.transaction() as session:
            row = session.get_one(ScheduledRunRow, run_id)
            row.state, row.exit_code, row.ended_at = state, exit_code, now()
            row.message = message[-MESSAGE_CHARACTERS:] if message else None

    def refuse(self, firing: Firing, reason: str) -> None:
        """Write that a run was due and not begun."""
        with self._database.transaction() as session:
            row = _row(firing, REFUSED, reason)
            row.ended_at = row.started_at
            session.add(row)

    def last_due(self, job: str) -> datetime | None:
        """The latest moment that a run of `job` was for."""
        query = select(ScheduledRunRow.due_at).where(ScheduledRunRow.job == job)
        with self._database.session() as session:
            return session.scalars(query.order_by(ScheduledRunRow.due_at.desc()).limit(1)).first()

    def latest(self, limit: int = 20, job: str | None = None) -> list[ScheduledRunRow]:
        """The newest runs, newest first."""
        query = select(ScheduledRunRow).order_by(ScheduledRunRow.run_id.desc()).limit(limit)
        if job is not None:
            query = query.where(ScheduledRunRow.job == job)
        with self._database.session() as session:
            return list(session.scalars(query))


def _row(firing: Firing, state: str, message: str | None) -> ScheduledRunRow:
    return ScheduledRunRow(
        run_id=str(uuid_utils.uuid7()),
        job=firing.job,
        command=list(firing.command),
        state=state,
        due_at=firing.due,
        missed=firing.missed,
        message=message,
        started_at=now(),
    )
