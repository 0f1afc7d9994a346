"""A verdict as a run of its own in MLflow, for looks and checks that belong to no training."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.records import Decision, Verdict
from pipelines.mlflow_api import MLflowAPI, MLflowAway, MLflowRefused, experiment_id, pairs

FIGURES = ("baseline", "candidate", "delta")


class NotTold(RuntimeError):
    """MLflow is away or refused; the verdict is in the state database all the same."""


def tell(tracking_uri: str, experiment: str, verdict: Verdict) -> str:
    """Log `verdict` as a finished run of `experiment`; an alert with its report.

    Returns: the run's id. Raises: NotTold.
    """
    api = MLflowAPI(tracking_uri)
    moment = int(verdict.created_at.timestamp() * 1000)
    tags = {
        "verdict_id": verdict.verdict_id,
        "verdict": verdict.decision.value,
        "subject": verdict.subject,
        "baseline": verdict.baseline,
    }
    try:
        info = api.post(
            "runs/create",
            {
                "experiment_id": experiment_id(api, experiment),
                "run_name": f"{verdict.subject} {verdict.decision.value}",
                "start_time": moment,
                "tags": pairs(tags),
            },
        )["run"]["info"]
        api.post("runs/log-batch", {"run_id": info["run_id"], "metrics": _metrics(verdict, moment)})
        content = json.dumps(verdict.as_dict(), indent=2, default=str).encode()
        api.upload(info["artifact_uri"], "verdict.json", content)
        report = Path(str(verdict.evidence.get("report") or ""))
        if verdict.decision is Decision.ALERT and report.suffix == ".html" and report.exists():
            api.upload(info["artifact_uri"], report.name, report)
        end = {"run_id": info["run_id"], "status": "FINISHED", "end_time": moment}
        api.post("runs/update", end)
    except (MLflowAway, MLflowRefused) as error:
        raise NotTold(f"{error}; verdict {verdict.verdict_id} is not in MLflow") from error
    return str(info["run_id"])


def _metrics(verdict: Verdict, moment: int) -> list[Mapping[str, Any]]:
    return [
        {"key": f"{result.name}/{figure}", "value": value, "timestamp": moment, "step": 0}
        for result in verdict.metrics
        for figure in FIGURES
        if (value := getattr(result, figure)) is not None and math.isfinite(value)
    ]
