"""The chain of ids derived once more from the stores alone: SQLite, Delta table, MLflow, files.

Nothing of the project is imported: what the demo and `llmops lineage` say is held against an
account that shares no code with them.
"""

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

JSON_COLUMNS = {
    "value", "evidence", "metrics", "manifest", "arms", "plan", "before", "after", "spec",
}  # fmt: skip


@dataclass
class Stores:
    """The stores of one home. `mlflow_url` is the tracking server's address."""

    home: Path
    mlflow_url: str

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of the state database, JSON columns read."""
        with sqlite3.connect(f"file:{self.home / 'state.db'}?mode=ro", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute(query, values)]
        connection.close()
        for row in found:
            row |= {k: json.loads(v) for k, v in row.items() if k in JSON_COLUMNS and v is not None}
        return found

    def one(self, query: str, *values: Any) -> dict[str, Any]:
        """The only row that there is."""
        (row,) = self.rows(query, *values)
        return row

    @cached_property
    def log(self) -> Mapping[str, Mapping[str, Any]]:
        """Every request that the Delta table has, by its id; a second row of one is an error."""
        from deltalake import DeltaTable

        table = DeltaTable(str(self.home / "log" / "requests")).to_pyarrow_table()
        rows = {row["request_id"]: row for row in table.to_pylist()}
        assert len(rows) == table.num_rows
        return rows

    @cached_property
    def mlflow(self) -> Any:
        """MLflow's own client."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.mlflow_url, registry_uri=self.mlflow_url)


@dataclass(frozen=True)
class DerivedChain:
    """From the moved alias down to the first feedback; each row as its store has it."""

    champion: Any  # MLflow's version
    promotion: Mapping[str, Any]
    experiment: Mapping[str, Any]
    decision: Mapping[str, Any]
    version: Mapping[str, Any]
    verdict: Mapping[str, Any]
    training: Mapping[str, Any]
    dataset: Mapping[str, Any]
    examples: list[dict[str, Any]]
    feedback: Mapping[str, Mapping[str, Any]]
    requests: Mapping[str, Mapping[str, Any]]


def derive(stores: Stores, name: str) -> DerivedChain:
    """Follow the links from MLflow's alias `champion`; a link that leads nowhere raises."""
    champion = stores.mlflow.get_model_version_by_alias(name, "champion")
    promotion = stores.rows(
        "SELECT * FROM promotion WHERE name = ? ORDER BY promotion_id", name
    )[-1]  # fmt: skip
    assert promotion["to_version"] == str(champion.version)
    experiment = stores.one(
        "SELECT * FROM experiment WHERE experiment_id = ?", promotion["experiment_id"]
    )
    version = stores.one(
        "SELECT * FROM model_version WHERE name = ? AND version = ?", name, experiment["version"]
    )
    training = stores.one("SELECT * FROM training WHERE training_id = ?", version["training_id"])
    dataset = stores.one("SELECT * FROM dataset WHERE dataset_id = ?", training["dataset_id"])
    examples = stores.rows(
        "SELECT * FROM dataset_example WHERE dataset_id = ? ORDER BY position",
        dataset["dataset_id"],
    )
    feedback = {
        one["feedback_id"]: stores.one(
            "SELECT * FROM feedback WHERE feedback_id = ?", one["feedback_id"]
        )
        for one in examples
    }
    return DerivedChain(
        champion=champion,
        promotion=promotion,
        experiment=experiment,
        decision=_verdict(stores, experiment["verdict_id"]),
        version=version,
        verdict=_verdict(stores, version["verdict_id"]),
        training=training,
        dataset=dataset,
        examples=examples,
        feedback=feedback,
        requests={one["request_id"]: stores.log[one["request_id"]] for one in examples},
    )


def digest_of_dataset(manifest: Mapping[str, Any]) -> str:
    """What a data set's id has to be, by the rule in the documents."""
    held = {name: manifest[name] for name in ("schema_version", "name", "files")}
    canonical = json.dumps(held, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def heard(stores: Stores, experiment: Mapping[str, Any]) -> dict[str, list[float]]:
    """By arm, what each user said first of its answers: 1 helpful, 0 not."""
    said: dict[str, dict[str, tuple[str, float]]] = defaultdict(dict)
    for row in stores.rows(
        "SELECT * FROM feedback WHERE metric_name = 'helpful' ORDER BY created_at"
    ):
        asked = stores.log.get(row["request_id"])
        if asked is not None and asked["experiment"] == experiment["experiment_id"]:
            said[asked["variant"]].setdefault(asked["user"], (row["created_at"], row["value"]))
    return {arm: [float(value) for _, value in users.values()] for arm, users in said.items()}


def exact_match(path: Path, expected: Mapping[str, Any]) -> float:
    """Share of the answers in a stage's file that are JSON and equal what was expected."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(_says(line["text"], expected[line["case_id"]]) for line in lines) / len(lines)


def _says(text: str, expected: Any) -> bool:
    try:
        return bool(json.loads(text) == expected)
    except ValueError:
        return False


def _verdict(stores: Stores, verdict_id: str) -> dict[str, Any]:
    return stores.one("SELECT * FROM verdict WHERE verdict_id = ?", verdict_id)
