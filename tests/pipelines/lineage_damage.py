"""A chain's copy in a home of its own, and every way in which a link of it may be cut.

Rows are cut with foreign keys and triggers off, as a restored copy or a hand in the file would.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from deploy.commands import logs
from gateway.database import open_database
from gateway.log_table import LogTable
from gateway.request_log import LogReader
from gateway.segment import MAGIC, Entry, read_segment
from gateway.settings import Settings, load_settings
from pipelines.dvc_process import stage_environment
from pipelines.lineage_check import Report, Sources, check
from pipelines.lineage_mlflow import MLflowFacts
from pipelines.workspace import Workspace
from tests.pipelines.lifecycle_rows import Chain

CONFIGURATION = """
upstreams: {{vllm: {{url: "http://127.0.0.1:1/v1"}}}}
models:
  {name}: {{upstream: vllm}}
mlflow: {{tracking_uri: "{tracking_uri}"}}
"""
CURE = re.compile(
    r"; (restore |find out which |fetch it again: mlflow|fetch them from |upload it again: mlflow|"
    r"roll back, then promote|stop the experiment|the controller is|somebody moved them; the|"
    r"wait for its end|bring MLflow back)"
)
TRIGGERS = ("audit_no_update", "audit_no_delete", "audit_no_replace")


def copied(chain: Chain, home: Path) -> Chain:
    """The same chain in another home; the folders that rows name go along."""
    chain.database.close()  # SQLite's write-ahead log goes into the file
    shutil.copytree(chain.home, home)
    copy = replace(
        chain,
        home=home,
        database=open_database(f"sqlite:///{home / 'state.db'}"),
        reader=LogReader(home / "spool", str(home / "log" / "requests")),
    )
    for table in ("training", "model_version"):
        moved = f"UPDATE {table} SET path = replace(path, ?, ?)"
        edit(copy, moved, str(chain.home), str(home))
    return copy


def configured(chain: Chain, tracking_uri: str) -> dict[str, str]:
    """The environment of a command in the chain's home, with a configuration there."""
    path = chain.home / "gateway.yaml"
    path.write_text(CONFIGURATION.format(name=chain.name, tracking_uri=tracking_uri))
    own = {"LLMOPS_HOME": str(chain.home), "LLMOPS_CONFIG": str(path), "LLMOPS_DATABASE_URL": ""}
    return {**os.environ, **own}


def settings_of(chain: Chain) -> Settings:
    return load_settings({**os.environ, "LLMOPS_HOME": str(chain.home), "LLMOPS_DATABASE_URL": ""})


def sources_of(chain: Chain, tracking_uri: str, **changes: Any) -> Sources:
    """Where a check of the chain looks; its data set's files by their plain folder."""
    given: dict[str, Any] = {"fetch": lambda name, dataset_id: chain.dataset_path}
    mlflow = MLflowFacts(tracking_uri)
    return Sources(chain.database, chain.reader, mlflow, **(given | changes))


def checked(chain: Chain, tracking_uri: str, **changes: Any) -> Report:
    return check(sources_of(chain, tracking_uri, **changes))


def told(report: Report) -> str:
    """The broken links, one a line, as the command prints them; each says what to do."""
    for link in report.broken:
        assert CURE.search(link.found) or link.to.endswith(" …"), link
    return "\n".join(f"{link.of} → {link.to}: {link.found}" for link in report.broken)


def edit(chain: Chain, statement: str, *parameters: Any) -> int:
    """Change rows behind everybody's back; returns how many."""
    chain.database.close()
    with closing(sqlite3.connect(chain.home / "state.db")) as connection:
        for trigger in TRIGGERS:
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        changed = connection.execute(statement, parameters).rowcount
        connection.commit()
    return changed


def rows(chain: Chain, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Rows as they are in the file."""
    with closing(sqlite3.connect(chain.home / "state.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query, parameters)]


def forget_requests(chain: Chain, ids: Collection[str]) -> None:
    """Take requests out of the log, wherever they are: table and spool."""
    table = LogTable(str(chain.home / "log" / "requests"))
    lost = 0
    if table.exists:
        listed = ", ".join(f"'{one}'" for one in ids)
        lost += table.delete(f"request_id IN ({listed})")
    for path in (chain.home / "spool").glob("*.seg"):
        data = path.read_bytes()
        kept = [entry for entry in _entries(path) if entry.meta["request_id"] not in ids]
        lost += len(list(_entries(path))) - len(kept)
        records = (data[entry.offset : entry.offset + entry.size] for entry in kept)
        path.write_bytes(MAGIC + b"".join(records))
    assert lost == len(ids)


def erase(chain: Chain, tracking_uri: str, user: str, *options: str) -> None:
    """Forget a user as the law asks, by the command."""
    environment = configured(chain, tracking_uri)
    given = ["erase", "--user", user, "--yes", *options]
    done = CliRunner().invoke(logs.app, given, env=environment)
    assert done.exit_code == 0, done.output


def keep_files(chain: Chain) -> None:
    """Put the data set into DVC's cache and remote under its pin, as a pass does."""
    workspace = Workspace(settings_of(chain), chain.name)
    workspace.prepare("{}")
    pins, kept = workspace.folder / "pins", workspace.remote.pins / chain.name
    shutil.copytree(chain.dataset_path, pins / chain.dataset_id)
    for command in ("add", "push"):
        subprocess.run(
            [sys.executable, "-m", "dvc", command, "--quiet", f"pins/{chain.dataset_id}"],
            cwd=workspace.folder,
            env=stage_environment(workspace.settings),
            check=True,
        )
    kept.mkdir(parents=True)
    shutil.copy(pins / f"{chain.dataset_id}.dvc", kept)


def _entries(path: Path) -> Iterator[Entry]:
    return (entry for entry in read_segment(path) if isinstance(entry, Entry))
