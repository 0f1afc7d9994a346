"""`llmops data`, as a person calls it."""

import re
import shlex
from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

from deploy.cli import app
from tests.embedding_stack import RedisProcess
from tests.gateway_process import GatewayProcess, configuration


def test_from_snapshot_to_checkout(tmp_path: Path) -> None:
    with RedisProcess(tmp_path) as redis:
        given = configuration("http://127.0.0.1:9/v1", model_server={"redis_url": redis.url})
        process = GatewayProcess(tmp_path / "home", given)

        def said(line: str, code: int = 0) -> str:
            done = CliRunner().invoke(app, shlex.split(line), env=process.environ)
            assert done.exit_code == code, done.output
            return done.stderr if code else done.stdout

        assert "there is no snapshot yet" in said("data list")
        ids, rows = [], ""
        for until in ("2013-02-11T12:00", "2013-02-12"):
            made = said(f"data snapshot flights --since 2013-02-10 --until {until}")
            found = re.search(r"snapshot ([0-9a-f]{32})\n  flights.parquet: ([\d,]+) rows", made)
            assert found is not None
            ids.append(found[1])
            rows = found[2]
        table = pd.read_parquet(tmp_path / "home" / "data" / "flights" / ids[1] / "flights.parquet")
        assert rows == f"{len(table):,}"
        shown = said("data list")
        assert shown.index(ids[0]) < shown.index(ids[1])
        compared = said(f"data diff {ids[0][:8]} {ids[1][:8]}")
        assert re.search(r"flights.parquet +│ +[\d,]+ +│ +[\d,]+ +│ +[\d,]+ +│ +0 +│", compared)
        assert "flights.late" in compared  # its share without a value has fallen
        assert "is whole" in said(f"data checkout {ids[0]}")
        assert "no single snapshot 'abcdef'" in said("data checkout abcdef", 1)
        put = said(f"data materialise {ids[1]}")
        assert "carrier_rates, route_rates, weather as of 2013-02-12 00:00 UTC" in put
        with redis.client() as client:
            assert client.dbsize() > 100
