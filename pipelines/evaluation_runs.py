"""An evaluation as a run in MLflow: its figures, every answer in a table, report and verdict."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from evals.evaluation_page import page
from evals.evaluation_report import EvaluationReport, table_of
from gateway.database import now
from pipelines.mlflow_api import MLflowAPI, MLflowAway, MLflowRefused, experiment_id, pairs
from pipelines.verdict_runs import NotTold

EXPERIMENT = "evaluations"
TABLE, PAGE, VERDICT = "answers.json", "report.html", "verdict.json"
EVALUATION_RUN = {"mlflow.runType": "genai_evaluate"}  # MLflow lists it among its evaluation runs


def tell(tracking_uri: str, report: EvaluationReport) -> str:
    """Log the evaluation as a finished run. Returns: the run's id. Raises: NotTold."""
    api = MLflowAPI(tracking_uri)
    verdict, evaluation = report.verdict, report.evaluation
    moment = int(verdict.created_at.timestamp() * 1000)
    try:
        opened = {
            "experiment_id": experiment_id(api, EXPERIMENT),
            "run_name": f"{report.title} {verdict.decision.value}",
            "start_time": moment,
            "tags": pairs(_tags(report)),
        }
        info = api.post("runs/create", opened)["run"]["info"]
        params = {
            "prompt": evaluation.name,
            "content_hash": evaluation.content_hash,
            "model": evaluation.model,
            "source": report.source,
            "metrics": ", ".join(evaluation.scores),
        }
        figures = [
            {"key": key, "value": value, "timestamp": moment, "step": 0}
            for key, value in _metrics(report)
            if value is not None and math.isfinite(value)
        ]
        batch = {"run_id": info["run_id"], "metrics": figures, "params": pairs(params)}
        api.post("runs/log-batch", batch)
        columns, rows = table_of(report)
        for name, content in (
            (TABLE, json.dumps({"columns": columns, "data": rows})),
            (PAGE, page(report)),
            (VERDICT, json.dumps(verdict.as_dict(), indent=2, default=str)),
        ):
            api.upload(info["artifact_uri"], name, content.encode())
        end = {"run_id": info["run_id"], "status": "FINISHED"}
        api.post("runs/update", {**end, "end_time": int(now().timestamp() * 1000)})
    except (MLflowAway, MLflowRefused) as error:
        raise NotTold(f"{error}; the evaluation is not in MLflow") from error
    return str(info["run_id"])


def _tags(report: EvaluationReport) -> Mapping[str, Any]:
    verdict = report.verdict
    return {
        **EVALUATION_RUN,
        "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
        "verdict_id": verdict.verdict_id,
        "verdict": verdict.decision.value,
        "subject": verdict.subject,
        "baseline": verdict.baseline,
    }


def _metrics(report: EvaluationReport) -> Iterator[tuple[str, float | None]]:
    for one in report.summaries:
        yield one.name, one.mean
        yield f"{one.name}/coverage", one.coverage.share
    for result in report.verdict.metrics:
        yield f"{result.name}/delta", result.delta
    yield "answers_cost_usd", report.costs
