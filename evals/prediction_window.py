"""Logged predictions as a table: features, probability, outcome, who asked, when.

One row per prediction; a request that failed is one row without any. What came of a prediction
comes later, as feedback on its request (a metric, true or false), or never: such rows have no
label, and that is no error. A request of several predictions cannot be given an outcome.

`moment` is what a prediction is about: a column of the request or of the features if the reference
names one (`scheduled_departure`), else when it was asked. `block` numbers the blocks of time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from evals.windows import FAILURES, Frame, Period, Traffic, asker_of, object_of, within
from gateway.database import Database
from gateway.feedback import FeedbackRow
from gateway.request_log import LogReader

FEATURE = "feature."  # before a feature's name
PROBABILITY, LABEL, LABELLED_AT = "probability", "label", "labelled_at"
OUTCOME = "outcome"
ERROR = "squared_error"  # its mean is the Brier score
MOMENT, BLOCK = "moment", "block"
RECENT = "recent"  # whether a row is among those whose features and probabilities are compared
READ = (
    "request_id", "ts", "user", "episode_id", "tenant", "status", "latency_ms", "adapter",
    "request", "response",
)  # fmt: skip
CHUNK = 5_000  # rows whose bodies are in memory at once
Row = Mapping[str, Any]


def read_predictions(reader: LogReader, traffic: Traffic, period: Period) -> Frame:
    """The rows, oldest first, without labels; `period.most` counts requests."""
    import pandas

    condition, parameters = within(traffic, period)
    names = reader.select(
        f"SELECT request_id FROM requests WHERE {condition} "
        f"ORDER BY request_id DESC LIMIT {period.most:d}",
        parameters,
    ).rows
    ids = sorted(row[0] for row in names)
    parts = []
    for start in range(0, max(len(ids), 1), CHUNK):
        chunk = ids[start : start + CHUNK] or ["", ""]
        bounds = [*parameters, chunk[0], chunk[-1]]
        rows = reader.rows(
            f"({condition}) AND request_id BETWEEN ? AND ?", bounds, columns=READ,
            order="request_id",
        )  # fmt: skip
        parts.append(_frame(rows, traffic.time))
    return pandas.concat(parts, ignore_index=True)


def labelled(frame: Frame, database: Database, metric: str) -> Frame:
    """The same with `label` (0 or 1) and `labelled_at` (microseconds) as far as they are known."""
    alone = ~frame["request_id"].duplicated(keep=False)
    ids = sorted(frame["request_id"][alone])
    said: dict[tuple[str, str], tuple[float, int]] = {}
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        query = select(
            FeedbackRow.tenant, FeedbackRow.request_id, FeedbackRow.value, FeedbackRow.created_at
        ).where(
            FeedbackRow.metric_name == metric,
            FeedbackRow.request_id.between(chunk[0], chunk[-1]),
        )
        with database.session() as session:
            for tenant, request, value, at in session.execute(
                query.order_by(FeedbackRow.feedback_id)
            ):
                if isinstance(value, bool):  # the last word counts
                    said[tenant, request] = float(value), _micros(at)
    keys = zip(frame["tenant"], frame["request_id"], alone, strict=True)
    found = [said.get((tenant, request)) if one else None for tenant, request, one in keys]
    return frame.assign(
        **{
            LABEL: [float("nan") if one is None else one[0] for one in found],
            LABELLED_AT: [float("nan") if one is None else float(one[1]) for one in found],
        }
    )


def prepared(frame: Frame, seconds: float) -> Frame:
    """The same with the number of each row's block of so many seconds, its squared error, and its
    outcome as a word, as Evidently wants it."""
    return frame.assign(
        **{
            BLOCK: frame[MOMENT] // int(seconds * 1_000_000),
            OUTCOME: frame[LABEL].map({0.0: "no", 1.0: "yes"}),
            ERROR: (frame[PROBABILITY] - frame[LABEL]) ** 2,
            RECENT: True,
        }
    )


def features_in(frame: Frame) -> list[str]:
    """Columns of features."""
    return [name for name in frame.columns if name.startswith(FEATURE)]


def _frame(rows: Sequence[Row], time: str | None) -> Frame:
    import pandas

    made = [one for row in rows for one in _predictions(row, time)]
    fixed = ["request_id", "ts", "unit", "tenant", "version", "failed", "latency_ms", PROBABILITY,
             MOMENT]  # fmt: skip
    frame = pandas.DataFrame(made, columns=None if made else fixed)
    for name in features_in(frame):
        values = frame[name]
        if not values.map(lambda one: isinstance(one, str)).any():
            frame[name] = values.astype(float)
    return frame


def _predictions(row: Row, time: str | None) -> list[dict[str, Any]]:
    """A row for each prediction of a request; one without any if there is none."""
    ts = _micros(row["ts"])
    request, response = object_of(row["request"]), object_of(row["response"])
    instances, features = _listed(request, "instances"), _listed(response, "features")
    predictions = _listed(response, "predictions") if row["status"] == "ok" else []
    rest = {
        "request_id": row["request_id"],
        "ts": ts,
        "unit": asker_of(row),
        "tenant": row["tenant"],
        "version": row["adapter"],
        "failed": float(row["status"] in FAILURES),
        "latency_ms": float("nan") if row["latency_ms"] is None else float(row["latency_ms"]),
    }
    if not predictions:
        return [{**rest, PROBABILITY: float("nan"), MOMENT: ts}]
    made = []
    for index, prediction in enumerate(predictions):
        used, given = (_at(one, index) for one in (features, instances))
        moment = _moment({**given, **used}.get(time)) if time is not None else None
        values = {FEATURE + name: _value(value) for name, value in used.items()}
        probability = _number(prediction.get("probability"))
        about = {PROBABILITY: probability, MOMENT: ts if moment is None else moment}
        made.append({**rest, **about, **values})
    return made


def _listed(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    values = body.get(name)
    if not isinstance(values, list):
        return []
    return [one if isinstance(one, dict) else {} for one in values]


def _at(values: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any]:
    return values[index] if index < len(values) else {}


def _value(value: Any) -> Any:
    """A feature's value; lists and objects are none."""
    if isinstance(value, str):
        return value
    return _number(value)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _moment(value: Any) -> int | None:
    """Microseconds since the epoch of an ISO date or of seconds."""
    try:
        if isinstance(value, str):
            return _micros(datetime.fromisoformat(value))
        return None if value is None else int(float(value) * 1_000_000)
    except (TypeError, ValueError, OverflowError):
        return None


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)
