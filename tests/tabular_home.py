"""Tabular models to serve, features of them in Redis, and KServe's model server as a child process.

The models know flights' features (`feature_repo/flights.py`) but are fitted on made-up rows: what
is tested is how they are served.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gateway.feature_schema import feature_schema
from gateway.feature_store import open_feature_store
from gateway.tabular_model import TRUSTED
from tests.gateway_process import ROOT

SERVICE, ALIAS = "arrival_delay", "flight-delay"
METADATA = {"feature_service": SERVICE}
MOMENT = datetime(2013, 6, 1, 14, tzinfo=UTC)
FLIGHT = {
    "carrier": "AA",
    "route": "JFK-LAX",
    "origin": "JFK",
    "scheduled_departure": "2013-06-01T14:30:00Z",
    "distance": 2475,
}
READY_SECONDS = 90.0
ROWS = 200


def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """MLflow and Feast warn of what they do themselves; here a warning is an error."""

    @wraps(function)
    def quiet(*given: Any, **named: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*given, **named)

    return quiet


def flight(**columns: Any) -> dict[str, Any]:
    """One instance of a request, with some columns of its own."""
    return {**FLIGHT, **columns}


def served(digits: str) -> str:
    """The name of a version."""
    return f"{ALIAS}-{digits:0<12}"


def made_up_rows(seed: int, count: int = ROWS) -> tuple[pd.DataFrame, Any]:
    """Features and labels."""
    random = np.random.default_rng(seed)
    names = feature_schema(SERVICE).features
    rows = pd.DataFrame({name: random.normal(1, 1, count) for name in names})
    late = (rows["carrier_late_30d"] + random.normal(0, 0.5, count) > 1).astype(int)
    return rows, late


@quietly
def save_version(
    tabular: Path,
    name: str,
    *,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    serialization_format: str = "skops",
    trees: int = 0,
) -> Path:
    """Fit a small model and save it as a version `name`; returns its folder.

    Args:
        columns: features that it knows by another name.
        trees: make it as large as one that is trained on real flights, calibrated as those are.
    """
    import mlflow.sklearn
    from mlflow.models import infer_signature
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.frozen import FrozenEstimator

    rows, late = made_up_rows(seed, 100 * trees or ROWS)
    rows = rows.rename(columns=dict(columns or {}))
    small = HistGradientBoostingClassifier(max_iter=trees or 20, random_state=seed)
    model: Any = small.fit(rows, late)
    if trees:
        model = CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid").fit(rows, late)
    skops = serialization_format == "skops"
    tabular.mkdir(parents=True, exist_ok=True)
    mlflow.sklearn.save_model(
        model,
        str(tabular / name),
        serialization_format=serialization_format,
        skops_trusted_types=list(TRUSTED) if skops else None,
        pyfunc_predict_fn="predict_proba",
        signature=infer_signature(rows, model.predict_proba(rows)),
        input_example=rows.head(3),
        pip_requirements=[],
        metadata=dict(METADATA if metadata is None else metadata),
    )
    return tabular / name


@quietly
def save_booster(tabular: Path, name: str, trees: int = 10) -> Path:
    """The same with XGBoost."""
    import mlflow.xgboost
    import xgboost
    from mlflow.models import infer_signature

    rows, late = made_up_rows(0)
    parameters = {"objective": "binary:logistic", "nthread": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(rows, late), num_boost_round=trees)
    mlflow.xgboost.save_model(
        booster,
        str(tabular / name),
        model_format="ubj",
        signature=infer_signature(rows, booster.predict(xgboost.DMatrix(rows))),
        input_example=rows.head(3),
        pip_requirements=[],
        metadata=dict(METADATA),
    )
    return tabular / name


@quietly
def fill_features(home: Path, redis_url: str) -> None:
    """Put the features of `FLIGHT` and of a second carrier into Redis."""
    store = open_feature_store(home, redis_url, key_ttl_seconds=3600)
    rates = ("flights_30d", "late_30d", "delay_30d", "cancelled_30d")
    for view, key, values in (
        ("carrier_rates", "carrier", ("AA", "DL")),
        ("route_rates", "route", ("JFK-LAX", "LGA-ATL")),
    ):
        rows: dict[str, Any] = {key: values, "event_timestamp": [MOMENT, MOMENT]}
        rows |= {f"{key}_{rate}": [n + 0.25, n + 1.5] for n, rate in enumerate(rates)}
        store.write_to_online_store(view, pd.DataFrame(rows))
    readings = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
    rows = {"origin": ["JFK"], "event_timestamp": [MOMENT]}
    rows |= {name: [float(n)] for n, name in enumerate(readings)}
    store.write_to_online_store("weather", pd.DataFrame(rows))


class ModelServerProcess:
    """`python -m gateway.tabular_server` over a home. `start` returns when it is ready."""

    def __init__(self, environ: Mapping[str, str], port: int):
        self.environ = dict(environ)
        self.port = port
        self._out = Path(environ["LLMOPS_HOME"]) / f"model-server-{port}.out"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2"

    def start(self) -> "ModelServerProcess":
        """Start it and wait until it is ready."""
        with self._out.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.tabular_server"],
                cwd=ROOT,
                env={**os.environ, **self.environ},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return self
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.05)
        raise AssertionError(f"the model server is not ready:\n{self.output()}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def output(self) -> str:
        """What it printed."""
        return self._out.read_text()

    def stop(self) -> int:
        """End it as a person would; its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=20)

    def kill(self) -> None:
        """End it without warning, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=20)
