"""A training as a run in MLflow: parameters, metrics while it goes, files, how it ended, verdicts.

MLflow must be there when a training starts, since the run's id is the training's id. From then on
the training never waits for it: metrics go to a journal on disk (`pipelines.metric_journal`) and
from there to MLflow by a thread, which keeps trying. What has not arrived at the end is sent once
more; if MLflow is still away the end is a `TrackingUnavailable`, with everything kept on disk: a
second attempt with the same journal goes on in the same run and sends what is missing. MLflow keeps
a metric with the same name, value, step and moment once, so sending again changes nothing.
"""

import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import time
from types import TracebackType
from typing import Any, Self

from evals.records import Verdict
from pipelines.metric_journal import MetricJournal
from pipelines.mlflow_api import (
    CALL_SECONDS,
    MLflowAPI,
    MLflowAway,
    MLflowRefused,
    experiment_id,
    pairs,
    quoted,
)

SEND_SECONDS = 2.0
START = "llmops.start_id"
IDENTITY = ("dataset_id", "base_digest")
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
_log = logging.getLogger(__name__)


class TrackingUnavailable(RuntimeError):
    """MLflow is away or refused; the message says what is kept where."""


class Tracking:
    """Training runs in the MLflow server at `tracking_uri`.

    Args:
        seconds: the longest that a call may take.
        send_seconds: how often metrics are sent while a training goes.

    Raises:
        ValueError: `tracking_uri` is not a server's address.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        seconds: float = CALL_SECONDS,
        send_seconds: float = SEND_SECONDS,
    ):
        self._api = MLflowAPI(tracking_uri, seconds=seconds)
        self._send_seconds = send_seconds

    def start(
        self,
        name: str,
        *,
        tags: Mapping[str, str | None],
        params: Mapping[str, Any],
        journal: Path,
    ) -> "TrackedRun":
        """Begin a run in experiment `name`, or go on with the one that `journal` belongs to.

        An attempt is at the same training if `params` and the tags `dataset_id` and `base_digest`
        are the same. A journal of another training is replaced, and its run, if it was left
        running, ends as KILLED.

        Raises:
            TrackingUnavailable: MLflow is away; nothing was begun.
        """
        identity = {key: str(value) for key, value in params.items()}
        identity |= {f"tag {key}": str(tags.get(key)) for key in IDENTITY}
        with _trouble("no training was started"):
            experiment = experiment_id(self._api, name)
            kept = MetricJournal(journal, identity)
            try:
                if kept.replaced is not None:
                    self._abandon(experiment, kept.replaced)
                info = self._run(experiment, name, kept.start_id)
                body = {"run_id": info["run_id"], "params": pairs(params), "tags": pairs(tags)}
                self._api.post("runs/log-batch", body)
            except (MLflowAway, MLflowRefused):
                kept.close()
                raise
        return TrackedRun(self._api, info, kept, self._send_seconds)

    def verdict(self, training_id: str, verdict: Verdict) -> None:
        """Add `verdict` to a run: its numbers as metrics `gate/…`, all of it as a JSON artifact.

        Raises:
            TrackingUnavailable: MLflow is away, or knows no such run.
        """
        moment = int(verdict.created_at.timestamp() * 1000)
        metrics = [
            {"key": key, "value": value, "timestamp": moment, "step": 0}
            for key, value in figures(verdict).items()
        ]
        tags = {"verdict_id": verdict.verdict_id, "verdict": verdict.decision.value}
        content = json.dumps(verdict.as_dict(), indent=2, default=str).encode()
        with _trouble(f"verdict {verdict.verdict_id} is not in MLflow's run {training_id}"):
            info = self._api.get("runs/get", run_id=training_id)["run"]["info"]
            name = f"verdicts/{verdict.verdict_id}.json"
            self._api.upload(info["artifact_uri"], name, content)
            body = {"run_id": training_id, "metrics": _finite(metrics), "tags": pairs(tags)}
            self._api.post("runs/log-batch", body)

    def _run(self, experiment: str, name: str, start_id: str) -> dict[str, Any]:
        """The run that was begun under `start_id`, or a new one.

        Found by its tag, not by an id on disk: that also finds one whose answer never arrived.
        """
        found = self._started(experiment, start_id)
        if found is not None:
            self._api.post("runs/update", {"run_id": found["run_id"], "status": RUNNING})
            return found
        body = {
            "experiment_id": experiment,
            "run_name": f"{name}-{start_id[-12:]}",
            "start_time": _milliseconds(),
            "tags": pairs({START: start_id}),
        }
        return dict(self._api.post("runs/create", body)["run"]["info"])

    def _started(self, experiment: str, start_id: str) -> dict[str, Any] | None:
        condition = f"tags.`{START}` = {quoted(start_id)}"
        body = {"experiment_ids": [experiment], "filter": condition, "max_results": 1}
        found = self._api.post("runs/search", body).get("runs", [])
        return dict(found[0]["info"]) if found else None

    def _abandon(self, experiment: str, start_id: str) -> None:
        found = self._started(experiment, start_id)
        if found is not None and found["status"] == RUNNING:
            _end(self._api, found["run_id"], KILLED)


class TrackedRun:
    """A training under way. A context manager: the block's end is the run's end.

    Without an exception it ends as FINISHED, with an error as FAILED, else (an interrupt) as
    KILLED. Losing MLflow never ends the block early and never hides the block's own error.

    Attributes:
        training_id: id of the run in MLflow.
    """

    def __init__(
        self, api: MLflowAPI, info: Mapping[str, Any], journal: MetricJournal, send_seconds: float
    ):
        self.training_id: str = info["run_id"]
        self._artifacts: str = info["artifact_uri"]
        self._api = api
        self._journal = journal
        self._send_seconds = send_seconds
        self._ending = threading.Event()
        self._sender = threading.Thread(target=self._send_until_end, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._sender.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._sender.join()
        try:
            self._end(FINISHED if error is None else FAILED if _is_error(error) else KILLED)
        except TrackingUnavailable as unavailable:
            if error is None:
                raise
            _log.warning("%s", unavailable)
        finally:
            self._journal.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep `metrics` of `step`. Writes a line to a file; never waits for MLflow."""
        self._journal.append(step, metrics)

    def artifacts(self, folder: Path, name: str = "model") -> None:
        """Put every file of `folder` among the run's artifacts, under `name`.

        Raises:
            TrackingUnavailable: MLflow is away; calling it again begins anew.
        """
        with _trouble(f"{folder} is whole, but not in MLflow's run {self.training_id}"):
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                self._api.upload(self._artifacts, f"{name}/{file.relative_to(folder)}", file)

    def _end(self, status: str) -> None:
        kept = f"its metrics are kept in {self._journal.path}"
        again = "run it again when MLflow is back: it goes on from there"
        with _trouble(f"the training {self.training_id} ended as {status}; {kept}; {again}"):
            self._send()
            _end(self._api, self.training_id, status)

    def _send_until_end(self) -> None:
        away = False
        while not self._ending.wait(self._send_seconds):
            try:
                self._send()
            except (MLflowAway, MLflowRefused) as error:
                if not away:
                    _log.warning("%s: metrics are kept, sent later: %s", self.training_id, error)
                away = True
            else:
                away = False

    def _send(self) -> None:
        while rows := self._journal.unsent():
            body = {"run_id": self.training_id, "metrics": _finite(rows)}
            self._api.post("runs/log-batch", body)
            self._journal.mark_sent(len(rows))


def figures(verdict: Verdict) -> dict[str, float]:
    """A verdict's numbers as metrics: `gate/METRIC/…`."""
    return {
        f"gate/{result.name}/{what}": value
        for result in verdict.metrics
        for what in ("baseline", "candidate", "delta", "ci_low", "ci_high")
        if (value := getattr(result, what)) is not None
    }


@contextmanager
def _trouble(consequence: str) -> Iterator[None]:
    try:
        yield
    except (MLflowAway, MLflowRefused) as error:
        raise TrackingUnavailable(f"{error}; {consequence}") from error


def _end(api: MLflowAPI, training_id: str, status: str) -> None:
    body = {"run_id": training_id, "status": status, "end_time": _milliseconds()}
    api.post("runs/update", body)


def _is_error(error: BaseException) -> bool:
    return isinstance(error, Exception)


def _finite(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`metrics` in valid JSON: MLflow takes what is not a number as text."""
    return [
        row if math.isfinite(row["value"]) else row | {"value": _named(row["value"])}
        for row in metrics
    ]


def _named(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _milliseconds() -> int:
    return int(time() * 1000)
