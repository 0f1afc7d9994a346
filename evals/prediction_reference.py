"""What predictions are compared with: the held-out data that the champion was evaluated on.

An evaluation keeps its test rows with the version's own probabilities and what came of them
(`keep_predictions`), under `LLMOPS_HOME/drift/versions/<served name>/`. When a version has become
champion, the next look pins them as the alias's reference (`evals.reference`), with a row in the
audit trail.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from evals.prediction_window import (
    FEATURE,
    LABEL,
    MOMENT,
    PROBABILITY,
    labelled,
    read_predictions,
)
from evals.reference import (
    FOLDER,
    NoReference,
    Reference,
    ReferenceDamaged,
    current,
    how_to_pin,
    pin,
)  # fmt: skip
from evals.watch import Watch
from evals.windows import Frame, Period, Traffic
from gateway.audit import Change, record

VERSIONS, ROWS, ABOUT = "versions", "rows.parquet", "about.json"
ACTOR = "drift"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Held-out rows with a version's own predictions.

    Attributes:
        features: a column for each feature that the version uses.
        probability: of the positive class, by row.
        outcome: whether it came true (0 or 1, NaN where nobody knows).
        moment: what moment each row is about (aware times).
        about: `label` (the feedback metric), `time` (the column that `moment` is), `dataset_id`.
    """

    features: Frame
    probability: Any
    outcome: Any
    moment: Any
    about: Mapping[str, Any]


def keep_predictions(home: Path, version: str, evaluated: Evaluated) -> Path:
    """Keep them for the day on which `version` (a served name) is champion; again replaces them."""
    import pandas

    folder = _folder(home, version)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True, mode=0o700)
    moments = pandas.to_datetime(pandas.Series(evaluated.moment), utc=True).dt.as_unit("us")
    micros = moments.astype("int64").to_numpy()
    names = [f"{version}:{index}" for index in range(len(micros))]
    rows = pandas.DataFrame(
        {
            "request_id": names, "unit": names, "ts": micros, MOMENT: micros, "version": version,
            PROBABILITY: pandas.Series(evaluated.probability).to_numpy(dtype=float),
            LABEL: pandas.Series(evaluated.outcome).to_numpy(dtype=float, na_value=float("nan")),
            **{FEATURE + name: _plain(evaluated.features[name]) for name in evaluated.features},
        }
    )  # fmt: skip
    rows.to_parquet(fresh / ROWS, index=False, compression="zstd")
    (fresh / ABOUT).write_bytes(orjson.dumps(dict(evaluated.about)))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return folder


def current_predictions(watch: Watch, traffic: Traffic) -> tuple[Reference, Frame]:
    """The reference of the alias's champion, pinned now if it became champion since, and its rows.

    Raises: NoReference, ReferenceDamaged.
    """
    champion = watch.champion(traffic.model or "")
    found: tuple[Reference, Frame] | None = None
    with watch.database.session() as session:
        try:
            found = current(watch.home, traffic.key, session)
        except NoReference:
            if champion is None or not _folder(watch.home, champion).exists():
                raise
    if found is not None and champion in (None, found[0].version):
        return found
    assert champion is not None
    if not _folder(watch.home, champion).exists():
        was = found[0].version if found else None
        raise NoReference(
            f"{traffic.key}: its reference is of {was}, its champion is {champion}, whose "
            f"evaluation left no predictions; pin its traffic: {how_to_pin(traffic.key)}"
        )
    _adopt(watch, replace(traffic, version=champion))
    with watch.database.session() as session:
        return current(watch.home, traffic.key, session)


def logged_predictions(
    watch: Watch, traffic: Traffic, period: Period
) -> tuple[Traffic, Frame, dict[str, Any]]:
    """The log's own predictions of the champion, to be pinned: whose they are, the rows, and what
    is known about them."""
    asked = replace(traffic, version=watch.champion(traffic.model or ""))
    rows = read_predictions(watch.reader, asked, period)
    metric = None if traffic.predictions is None else traffic.predictions.label
    if metric is None:
        return asked, rows.assign(**{LABEL: float("nan")}), {}
    return asked, labelled(rows, watch.database, metric), {"label": metric}


def _adopt(watch: Watch, traffic: Traffic) -> None:
    """Pin what the champion's evaluation kept."""
    import pandas

    folder = _folder(watch.home, str(traffic.version))
    try:
        rows, about = (
            pandas.read_parquet(folder / ROWS),
            orjson.loads((folder / ABOUT).read_bytes()),
        )
    except (OSError, ValueError) as error:
        raise ReferenceDamaged(f"{folder}: cannot be read: {error}; pin a reference") from error
    pinned = pin(watch.home, traffic, rows, ACTOR, about)
    change = Change(
        ACTOR, "drift.pin", f"drift:{traffic.key}", f"its champion is {traffic.version}",
        after=asdict(pinned),
    )  # fmt: skip
    with watch.database.transaction() as session:
        record(session, change)


def _folder(home: Path, version: str) -> Path:
    return home / FOLDER / VERSIONS / quote(version, safe="")


def _plain(values: Any) -> Any:
    """Numbers as floats, anything else as texts; what is missing stays missing."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_bool_dtype(values) or is_numeric_dtype(values):
        return values.to_numpy(dtype=float, na_value=float("nan"))
    return values.astype(object).where(values.notna(), None).map(_text).to_numpy(dtype=object)


def _text(value: Any) -> Any:
    return None if value is None else str(value)
