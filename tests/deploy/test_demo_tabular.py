"""The replay of flights, piece by piece: what the online store holds at each moment, what is sent
in which order, what the page says. The whole of it runs in `tests/e2e/test_demo_tabular.py`."""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import example, given
from hypothesis import strategies as st

from deploy.demo import tabular_report
from deploy.demo.account import Act, Expectation
from deploy.demo.desk import Counter
from deploy.demo.tabular_account import FlightAccount, Month
from deploy.demo.tabular_plot import lines_svg
from deploy.demo.tabular_policies import NEVER, POLICIES, SERVED, Scored, compare, joined
from deploy.demo.tabular_replay import Replay, Replayed
from deploy.demo.tabular_terms import MONTHS, QUICK, FlightTerms, following, spec_until, start_of
from deploy.demo.tabular_year import OnlineFeed, differing
from evals.records import Decision, MetricResult, Verdict
from gateway.feature_reads import OnlineFeatures
from gateway.feature_schema import feature_schema
from pipelines.features import open_features, training_rows
from pipelines.spec import load_spec
from pipelines.tabular_spec import sections
from tests.pipelines.flight_tables import SINCE, write_week

SERVICE = "arrival_delay"
AT = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_week(tmp_path_factory.mktemp("week"))


@pytest.fixture(scope="module")
def store(week: Path) -> Iterator[Any]:
    with open_features(week) as found:
        yield found


def test_at_each_hour_the_online_store_gives_what_training_would_have_known(week: Path, store: Any):
    schema = feature_schema(SERVICE)
    flights = pd.read_parquet(week / "flights.parquet")
    flights = flights[flights["scheduled_departure"] >= SINCE + timedelta(days=2)].iloc[::40]
    known = training_rows(store, SERVICE, flights)
    feed, online = OnlineFeed(store, week), OnlineFeatures(store, SERVICE)
    used: list[dict[str, Any]] = []
    for hour, due in flights.groupby(flights["scheduled_departure"].dt.floor("h")):
        feed.bring_to(hour.to_pydatetime())
        asked = schema.parse(due[list(schema.asked)].to_dict("records"))
        used += online.read(asked)[list(schema.features)].to_dict("records")
    assert len(used) > 80
    assert differing(schema.features, known, used) == 0
    used[3]["temp"] += 1.0
    used[5]["carrier_late_30d"] = None
    assert differing(schema.features, known, used) == 2


def test_nothing_is_written_twice(week: Path, store: Any):
    feed = OnlineFeed(store, week)
    assert set(feed.views) == {"carrier_rates", "route_rates", "weather"}
    moment = SINCE + timedelta(days=3, hours=10)
    assert feed.bring_to(moment) > 200
    assert feed.bring_to(moment) == 0
    assert feed.bring_to(moment + timedelta(hours=1)) == 3  # the weather at three airports


class Gateway:
    """Takes predictions and feedback, and remembers their order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def predict(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(("predict", body))
        if body["tags"]["flight"].startswith("XX"):
            return web.Response(status=503, text="away")
        number = f"0190-{len(self.seen)}"
        said = {"id": number, "version": "v1", "predictions": [{"probability": 0.25}],
                "features": [{"temp": 1.0}]}  # fmt: skip
        return web.json_response(said)

    async def feedback(self, request: web.Request) -> web.Response:
        self.seen.append(("feedback", await request.json()))
        return web.json_response({})


class NoFeed:
    def __init__(self) -> None:
        self.moments: list[datetime] = []

    def bring_to(self, moment: datetime) -> int:
        self.moments.append(moment)
        return 1


def _flights(*rows: tuple[str, int, int, bool | None]) -> pd.DataFrame:
    """Id, minute of departure, minute at which it is known, late."""
    start = pd.Timestamp(2013, 6, 1, tz="UTC")
    return pd.DataFrame(
        {
            "flight_id": [row[0] for row in rows],
            "scheduled_departure": [start + pd.Timedelta(minutes=row[1]) for row in rows],
            "known_at": [start + pd.Timedelta(minutes=row[2]) for row in rows],
            "late": pd.array([row[3] for row in rows], dtype="boolean"),
            "carrier": "UA", "route": "EWR-LAX", "origin": "EWR", "distance": 2454.0,
        }
    )  # fmt: skip


def test_a_month_goes_in_the_order_of_time_and_labels_come_when_they_are_known():
    gateway, feed = Gateway(), NoFeed()
    flights = _flights(
        ("UA1-EWR-1", 10, 200, True), ("UA2-EWR-2", 70, 5000, False), ("XX3-EWR-3", 75, 300, True),
        ("UA4-EWR-4", 300, 400, None), ("UA1-EWR-5", 310, 420, False),
    )  # fmt: skip
    until = datetime(2013, 6, 2, tzinfo=UTC)

    async def play() -> tuple[Replayed, Replayed]:
        app = web.Application()
        app.router.add_post("/v1/predict/flight-delay", gateway.predict)
        app.router.add_post("/v1/feedback", gateway.feedback)
        async with TestServer(app) as server:
            counter = Counter(str(server.make_url("")).rstrip("/"), "sk", "flight-delay")
            terms = FlightTerms("flight-delay", 3)
            replay = Replay(counter, terms, feature_schema(SERVICE), feed)  # type: ignore[arg-type]
            played = await asyncio.to_thread(replay.play, "June", flights, until, lambda _: None)
            return played, await asyncio.to_thread(replay.finish, lambda _: None)

    played, rest = asyncio.run(play())
    assert [moment.hour for moment in feed.moments] == [0, 1, 5]
    assert (played.sent, played.failed, played.labels, rest.labels) == (5, 1, 2, 1)
    assert "503" in played.reasons[0]
    kinds = [kind for kind, _ in gateway.seen]
    assert kinds == ["predict"] * 3 + ["feedback"] + ["predict"] * 2 + ["feedback"] * 2
    first = gateway.seen[0][1]
    assert first["user"] == "flights-3-UA1"
    assert first["instances"][0]["scheduled_departure"] == "2013-06-01T00:10:00+00:00"
    assert first["tags"]["simulated_at"] == "2013-06-01T00:10:00+00:00"
    labels = [body["value"] for kind, body in gateway.seen if kind == "feedback"]
    assert labels == [True, False, False]
    assert [one.flight_id for one in played.answers] == [
        "UA1-EWR-1", "UA2-EWR-2", "UA4-EWR-4", "UA1-EWR-5",
    ]  # fmt: skip


def test_a_months_spec_is_learnt_from_what_is_known_then():
    spec = load_spec(Path("flight-delay"))
    terms = FlightTerms("flight-delay", 5, QUICK)
    given = sections(spec_until(spec, terms, date(2013, 8, 1), 31))
    assert (given.dataset.until, given.dataset.test_days) == (date(2013, 8, 1), 31)
    assert given.training.seed == 5 and not given.evaluation.slices
    assert [following(month) for month in MONTHS[:-1]] == list(MONTHS[1:])
    assert following(MONTHS[-1]) == date(2014, 1, 1)


def _scored(days: int = 30, seed: int = 0) -> Scored:
    draw = np.random.default_rng(seed)
    labels = (draw.random(days * 20) < 0.25).astype(float)
    base = np.clip(0.2 + 0.2 * labels + draw.normal(0, 0.1, len(labels)), 0.01, 0.99)
    probabilities = dict.fromkeys(POLICIES, base) | {NEVER: np.full(len(labels), 0.5)}
    start = np.datetime64("2013-06-01")
    return Scored(labels, start + np.repeat(np.arange(days), 20), probabilities)


def test_policies_are_compared_on_the_same_flights():
    scored = joined([_scored(), _scored(seed=1)])
    found = compare(scored, NEVER, SERVED, seed=1)
    brier = found["brier"]
    assert brier.n == len(scored) == 1200
    assert brier.baseline == pytest.approx(0.25)
    assert brier.ci_high is not None and brier.ci_high < 0  # served is surely better
    same = compare(scored, SERVED, "monthly", seed=1)["auc"]
    assert (same.delta, same.ci_low, same.ci_high) == (0, 0, 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.floats(0, 1))
@example([5e-324], 0.0)
def test_a_picture_is_whole_whatever_it_shows(values: list[float], other: float):
    names = [f"<{place}>" for place in range(len(values))]
    picture = lines_svg("Brier & month", names, {"a": values, "b": [other] * len(values)})
    root = ET.fromstring(picture)
    lines = [one for one in root.iter() if one.tag.endswith("polyline")]
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, one.split(","))) for one in line.attrib["points"].split()]
        assert len(points) == len(values)
        assert all(0 <= x <= 640 and 0 <= y <= 320 for x, y in points)


def _account(met: bool = True) -> FlightAccount:
    metrics = tuple(
        MetricResult(name, 1.0, 2.0, 1.0, 0.5, 1.5, 100, passed)
        for name, passed in (("feature.temp", False), ("feature.humid", False), ("brier", True),
                             ("concept_brier", False))
    )  # fmt: skip
    look = Verdict("0190-w", "drift:model:flight-delay", "reference:1", Decision.ALERT, metrics,
                   ("feature.temp: moved | far",), {}, AT)  # fmt: skip
    scored = _scored()
    month = Month(MONTHS[0], "version 1", Replayed(sent=600), {"v1": 600}, scored=scored, look=look,
                  started=True, then="version 1 stays")  # fmt: skip
    month.compared = {name: compare(scored, name, SERVED, 1) for name in ("never", "monthly")}
    account = FlightAccount(FlightTerms("flight-delay", 7), AT, {"cores": "2"})
    account.acts = [Act(1, "June", 3.0, [Expectation("no request failed", "0 failed", met)])]
    account.months = [month, replace_month(month)]
    account.overall = month.compared
    return account


def replace_month(month: Month) -> Month:
    return replace(month, first=MONTHS[1], look=replace(month.look, decision=Decision.HOLD),  # type: ignore[type-var]
                   started=False, then="")  # fmt: skip


def test_the_page_says_what_the_account_says(tmp_path: Path):
    page = tmp_path / "demo.md"
    written = tabular_report.write(_account(), page)
    assert [path.name for path in written] == ["demo.md", "demo-brier.svg"]
    text = page.read_text()
    assert "All 1 expectations were met." in text
    assert "| June | version 1 | 2 features, concept_brier | yes | - | version 1 stays |" in text
    assert "| July | version 1 | nothing | no |" in text
    assert "moved \\| far" in text and "![Brier by month](demo-brier.svg)" in text
    assert ET.fromstring(written[1].read_text()) is not None


def test_what_did_not_come_out_is_named():
    account = _account(met=False)
    assert not account.as_expected
    assert tabular_report.ending(account) == "Not as expected: no request failed"
    account.ended = "MLflow is away"
    assert "It ended early: MLflow is away" in tabular_report.markdown(account, [])


def test_months_begin_at_midnight():
    assert start_of(MONTHS[0]) == datetime(2013, 6, 1, tzinfo=UTC)
