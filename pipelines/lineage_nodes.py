"""Rows of the lifecycle's tables as nodes of lineage: what is worth showing of each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from evals.verdicts import VerdictRow
from gateway.lineage import Node
from pipelines.champion import CHALLENGER
from pipelines.tables import (
    DatasetRow,
    ExperimentRow,
    ModelVersionRow,
    PromotionRow,
    RunRow,
    TrainingRow,
    TriggerEventRow,
)


def node_of(row: Any) -> Node:
    """The node of any of the rows."""
    return _NODE[type(row)](row)


def _details(row: Any, *names: str) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in names}
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in values.items()
    }


def dataset_node(row: DatasetRow) -> Node:
    """A data set."""
    return Node("dataset", row.dataset_id, details=_details(row, "name", "created_at"))


def training_node(row: TrainingRow) -> Node:
    """A training, with how it was configured and what it measured."""
    names = ("name", "kind", "dataset_id", "served_name", "digest", "base_model", "base_digest",
             "configuration", "metrics", "git_sha", "created_at")  # fmt: skip
    return Node("training", row.training_id, details=_details(row, *names))


def verdict_node(row: VerdictRow) -> Node:
    """A verdict, with its numbers and reasons."""
    names = ("decision", "subject", "baseline", "metrics", "reasons", "evidence", "created_at")
    return Node("verdict", row.verdict_id, details=_details(row, *names))


def version_node(row: ModelVersionRow) -> Node:
    """A version, by its name in MLflow's registry."""
    names = ("name", "version", "training_id", "verdict_id", "served_name", "created_at")
    return Node("model_version", f"{row.name}/{row.version}", details=_details(row, *names))


def run_node(row: RunRow) -> Node:
    """A pass of the train pipeline."""
    names = ("name", "state", "stage", "message", "dataset_id", "training_id", "verdict_id",
             "version", "git_sha", "started_at", "ended_at")  # fmt: skip
    return Node("run", row.run_id, details=_details(row, *names))


def experiment_node(row: ExperimentRow) -> Node:
    """An experiment; `candidate` is the adapter that was tried, or the champion's in an A/A;
    `watches` the experiment whose winner it watches."""
    names = ("alias", "name", "version", "state", "verdict_id", "message", "started_at", "ended_at")
    details = _details(row, *names)
    adapters = {arm["variant"]["name"]: arm["variant"]["adapter"] for arm in row.arms}
    more = {"candidate": adapters.get(CHALLENGER), "watches": row.plan.get("watches")}
    return Node("experiment", row.experiment_id, details=details | more)


def promotion_node(row: PromotionRow) -> Node:
    """A move of an alias."""
    names = ("kind", "alias", "name", "from_version", "to_version", "experiment_id", "verdict_id",
             "actor", "reason", "state", "created_at")  # fmt: skip
    return Node("promotion", row.promotion_id, details=_details(row, *names))


def trigger_event_node(row: TriggerEventRow) -> Node:
    """What a rule made of a verdict, and why."""
    names = ("rule", "action", "state", "reason", "answer", "attempts", "created_at", "ended_at")
    return Node("trigger_event", row.event_id, details=_details(row, *names))


_NODE: Mapping[type[Any], Callable[[Any], Node]] = MappingProxyType(
    {
        DatasetRow: dataset_node,
        TrainingRow: training_node,
        VerdictRow: verdict_node,
        ModelVersionRow: version_node,
        RunRow: run_node,
        ExperimentRow: experiment_node,
        PromotionRow: promotion_node,
        TriggerEventRow: trigger_event_node,
    }
)
