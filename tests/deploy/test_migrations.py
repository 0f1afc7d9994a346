"""The schema's history: it makes what the tables say, once, from any number of processes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError

import evals.verdicts  # noqa: F401 - declares a table
import gateway.feedback
import gateway.keys
import gateway.prompt_versions
import gateway.splits  # noqa: F401
import pipelines.tables  # noqa: F401
from deploy.migrations import HERE, head, revision, upgrade
from gateway.database import Base, open_database
from tests.gateway_process import ROOT

pytest_plugins = ("tests.state_databases",)

UPGRADE = "import sys; from deploy.migrations import upgrade; upgrade(sys.argv[1])"
AT_HEAD = (
    "import sys; from deploy.migrations import upgrade; upgrade(sys.argv[1]);"
    "sys.exit('alembic' in sys.modules)"
)


def test_the_history_makes_exactly_the_declared_tables(database_url: str) -> None:
    database = open_database(database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert "virtual_key" in inspect(connection).get_table_names()
    database.close()


def test_the_newest_revision_is_the_end_of_one_chain() -> None:
    names = sorted(path.stem for path in (HERE / "versions").glob("[0-9]*.py"))
    assert head() == names[-1]
    for earlier, later in zip([None, *names], names, strict=False):
        source = (HERE / "versions" / f"{later}.py").read_text()
        assert f"revision = {later!r}".replace("'", '"') in source
        wanted = "None" if earlier is None else f'"{earlier}"'
        assert f"down_revision = {wanted}" in source
        assert len(later) <= 32, "Alembic's column holds 32 characters"


def test_upgrading_again_changes_nothing_and_imports_no_alembic(database_url: str) -> None:
    database = open_database(database_url)
    assert revision(database) == head()
    database.close()
    started = time.monotonic()
    upgrade(database_url)
    assert time.monotonic() - started < 0.5
    subprocess.run([sys.executable, "-c", AT_HEAD, database_url], cwd=ROOT, check=True, timeout=30)


def test_several_processes_may_upgrade_at_once(empty_url: str) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", UPGRADE, empty_url], cwd=ROOT) for _ in range(3)
    ]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]


def test_an_unreachable_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(SQLAlchemyError, match="not a database"):
        upgrade(f"sqlite:///{tmp_path / 'state.db'}")
