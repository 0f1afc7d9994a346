"""A home whose alias answers with predictions: a made-up world, whose parts can be made to drift.

Every day has weather of its own, so rows of one day are alike. The model knows how the weather and
the carrier make things late, and says so exactly; `Made.flipped` is a world in which it is wrong.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas
import uuid_utils

from deploy.migrations import upgrade
from evals.drift import look
from evals.drift_plan import DriftPlan
from evals.prediction_plan import Predictions
from evals.prediction_reference import Evaluated, keep_predictions
from evals.prediction_window import labelled, read_predictions
from evals.records import Verdict
from evals.watch import Watch
from evals.windows import Period, Traffic
from gateway.database import Database, open_database
from gateway.feedback import FeedbackRow
from gateway.request_log import LogReader
from tests.spooled_requests import final, record, write_segment

ALIAS, VERSION = "flight-delay", "flight-delay-0123456789ab"
START = datetime(2026, 3, 1, tzinfo=UTC)
CARRIERS = ("AA", "DL", "UA")


@dataclass(slots=True)
class Made:
    """How a day's predictions are made; shares are of rows."""

    warmer: float = 0.0  # in standard deviations
    missing: float = 0.0
    united: float = 1 / 3  # share of one carrier
    flipped: bool = False  # what made things late makes them punctual
    failed: float = 0.0
    known: float = 1.0  # outcomes that are heard of


def world(random: Any, rows: int, made: Made) -> dict[str, Any]:
    """A day: features, what the model says, what comes of it."""
    temp = random.normal() * 0.7 + random.normal(size=rows) + made.warmer
    wind = random.normal() * 0.7 + random.normal(size=rows)
    rest = (1 - made.united) / 2
    carrier = random.choice(CARRIERS, size=rows, p=[rest, rest, made.united])
    logit = -1.2 + 0.9 * wind + 0.3 * temp + np.where(carrier == "UA", 0.4, 0.0)
    probability = 1 / (1 + np.exp(-logit))
    truth = 1 / (1 + np.exp(2.4 + logit)) if made.flipped else probability
    temp[random.random(rows) < made.missing] = np.nan
    return {
        "features": {"temp": temp, "wind": wind, "carrier": carrier},
        "probability": probability,
        "outcome": random.random(rows) < truth,
    }


def evaluated(random: Any, days: int, rows: int) -> Evaluated:
    """What a version's evaluation on held-out days gave."""
    parts = [world(random, rows, Made()) for _ in range(days)]
    features = pandas.concat([pandas.DataFrame(one["features"]) for one in parts])
    moments = [datetime(2013, 6, 1 + day, 12, tzinfo=UTC) for day in range(days)]
    return Evaluated(
        features=features.reset_index(drop=True),
        probability=np.concatenate([one["probability"] for one in parts]),
        outcome=np.concatenate([one["outcome"] for one in parts]).astype(float),
        moment=np.repeat(np.array(moments), rows),
        about={"label": "late", "dataset_id": "d" * 12},
    )


@dataclass
class PredictionHome:
    """The home. Days are appended one after the other."""

    folder: Path
    seed: int = 1
    plan: DriftPlan = field(default_factory=lambda: DriftPlan(least_rows=200))
    predictions: Predictions = field(default_factory=Predictions)
    champion: str | None = VERSION

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        url = f"sqlite:///{self.folder / 'state.db'}"
        upgrade(url)
        self.database: Database = open_database(url)
        self.reader = LogReader(self.folder / "spool", str(self.folder / "log" / "requests"))
        self.random = np.random.default_rng(self.seed)
        self.moment = START

    @property
    def watch(self) -> Watch:
        return Watch(
            self.folder, self.reader, self.database, self.plan, moment=self.moment,
            predicting={ALIAS}, champion=lambda _alias: self.champion,
        )  # fmt: skip

    @property
    def traffic(self) -> Traffic:
        return Traffic(model=ALIAS, predictions=self.predictions)

    def evaluate(self, version: str = VERSION, days: int = 14, rows: int = 150) -> None:
        """Keep what the evaluation of a version gave."""
        keep_predictions(self.folder, version, evaluated(self.random, days, rows))

    def look(self) -> Verdict:
        return look(self.watch, self.traffic)

    def predictions_there(self) -> Any:
        """All of the log's, with their outcomes."""
        period = Period(0, 2**52, 100_000)
        return labelled(read_predictions(self.reader, self.traffic, period), self.database, "late")

    def add(self, days: int, made: Made | None = None, rows: int = 100, **fields: Any) -> None:
        """Append days of predictions; their outcomes come eight hours after each."""
        for _ in range(days):
            self._day(made or Made(), rows, fields)

    def _day(self, made: Made, rows: int, fields: dict[str, Any]) -> None:
        day = world(self.random, rows, made)
        records, heard = [], []
        for index in range(rows):
            at = self.moment + timedelta(seconds=index * 86_400 / rows)
            name = _identifier(at)
            used = {key: _plain(values[index]) for key, values in day["features"].items()}
            body = {
                "predictions": [{"probability": float(day["probability"][index])}],
                "features": [used],
            }
            failed = self.random.random() < made.failed
            given = {
                "request_id": name, "ts": int(at.timestamp() * 1e6), "endpoint": "predict",
                "model": ALIAS, "adapter": VERSION, "latency_ms": 8.0,
                "status": "upstream_error" if failed else "ok", **fields,
            }  # fmt: skip
            asked = orjson.dumps({"instances": [{"carrier": used["carrier"]}]})
            records.append(final(record(**given), asked, b"" if failed else orjson.dumps(body)))
            if not failed and self.random.random() < made.known:
                heard.append((name, bool(day["outcome"][index]), at + timedelta(hours=8)))
        write_segment(self.folder / "spool", *records)
        self.hear(heard)
        self.moment += timedelta(days=1)

    def hear(self, outcomes: list[tuple[str, bool, datetime]], tenant: str = "acme") -> None:
        """Feedback on requests, as if it had come at these moments."""
        rows = [
            FeedbackRow(
                feedback_id=_identifier(at), tenant=tenant, key_id="key-1", reference=name,
                request_id=name, metric_name="late", type="boolean", value=value, tags={},
                created_at=at, state="pending",
            )
            for name, value, at in outcomes
        ]  # fmt: skip
        with self.database.transaction() as session:
            session.add_all(rows)


def _identifier(at: datetime) -> str:
    seconds, rest = divmod(at.timestamp(), 1)
    return str(uuid_utils.uuid7(timestamp=int(seconds), nanos=int(rest * 1e9)))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    return None if np.isnan(value) else float(value)
