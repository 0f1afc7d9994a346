"""Passes of the train pipeline: one per model at a time, each with a row that says how it went.

A run holds a lock file while it lives, so that one which was killed is told from one under way: the
next one marks it `interrupted` and goes on from where its stages left off.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uuid_utils
from sqlalchemy import func, select

from gateway.database import Conflict, Database, now
from pipelines.tables import RunRow

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
MESSAGE_CHARACTERS = 4000


@dataclass(slots=True)
class Run:
    """A run under way."""

    run_id: str
    name: str
    database: Database

    def enter(self, stage: str) -> None:
        """Say which stage it is in."""
        self.note(stage=stage)

    def note(self, **values: Any) -> None:
        """Put `values` into the run's row."""
        with self.database.transaction() as session:
            row = session.get_one(RunRow, self.run_id)
            for column, value in values.items():
                setattr(row, column, value)


@contextmanager
def under_way(
    database: Database, lock_dir: Path, name: str, spec: dict[str, Any], git_sha: str | None
) -> Iterator[Run]:
    """Hold the one place of a run of `name`; its row ends as finished, failed or interrupted.

    Raises:
        Conflict: another run of `name` is under way.
    """
    lock_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (lock_dir / f"train-{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                f"a run of {name} is under way (see: llmops train status {name}); "
                "wait for its end, or stop it"
            ) from error
        run = _begin(database, name, spec, git_sha)
        try:
            yield run
        except BaseException as error:
            interrupted = not isinstance(error, Exception)
            text = "interrupted" if interrupted else str(error)
            run.note(
                state=INTERRUPTED if interrupted else FAILED,
                message=text[:MESSAGE_CHARACTERS],
                ended_at=now(),
            )
            raise
        run.note(state=FINISHED, ended_at=now())


def is_under_way(lock_dir: Path, name: str) -> bool:
    """Whether a run of `name` holds its place."""
    try:
        with (lock_dir / f"train-{name}.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def latest(database: Database, name: str, limit: int = 10) -> list[RunRow]:
    """The newest runs of `name`, newest first."""
    query = select(RunRow).where(RunRow.name == name).order_by(RunRow.run_id.desc()).limit(limit)
    with database.session() as session:
        return list(session.scalars(query))


def last_of_alias(database: Database, alias: str) -> RunRow | None:
    """The newest run whose model stands behind `alias`; None: there was none."""
    query = select(RunRow).order_by(RunRow.run_id.desc())
    with database.session() as session:
        return next((row for row in session.scalars(query) if row.spec["alias"] == alias), None)


def newest(database: Database) -> list[RunRow]:
    """The newest run of every model, by name."""
    last = select(func.max(RunRow.run_id)).group_by(RunRow.name)
    query = select(RunRow).where(RunRow.run_id.in_(last)).order_by(RunRow.name)
    with database.session() as session:
        return list(session.scalars(query))


def _begin(database: Database, name: str, spec: dict[str, Any], git_sha: str | None) -> Run:
    last = select(RunRow).where(RunRow.name == name).order_by(RunRow.run_id.desc()).limit(1)
    run = Run(str(uuid_utils.uuid7()), name, database)
    with database.transaction() as session:
        before = session.scalars(last).one_or_none()
        if before is not None and before.state == RUNNING:  # its process is gone: we hold the lock
            before.state, before.ended_at = INTERRUPTED, now()
            before.message = f"its process ended in stage {before.stage}"
            session.flush()
        session.add(
            RunRow(
                run_id=run.run_id,
                name=name,
                state=RUNNING,
                stage="starting",
                spec=spec,
                git_sha=git_sha,
                started_at=now(),
            )
        )
    return run
