"""The lineage check, table by table: no row and no column goes unnoticed, also of later ones."""

import json
from pathlib import Path

import pytest

from evals.verdicts import VerdictRow
from gateway.audit import AuditRow
from gateway.database import Base
from gateway.feedback import FeedbackRow
from gateway.key_tables import KeyRow
from gateway.splits import SplitRow
from pipelines import tables
from pipelines.lineage_check import check
from tests.pipelines.lifecycle_rows import Chain
from tests.pipelines.lineage_damage import checked, copied, edit, rows, sources_of, told

pytest_plugins = ("tests.pipelines.written_chain",)
NAME = "rowed"

# Beside the chain: nothing of it rests on these. A new table is either one of them or is checked.
# Approvals are asked for where a spec says so: see test_lineage_approvals.
ASIDE = {
    tables.ScheduledRunRow, tables.TriggerEventRow, tables.ApprovalRow, tables.RegistryRecordRow,
}  # fmt: skip
LIFECYCLE = sorted(
    mapper.class_.__tablename__
    for mapper in Base.registry.mappers
    if mapper.class_.__module__ == tables.__name__ and mapper.class_ not in ASIDE
)
OTHERS = [row.__tablename__ for row in (AuditRow, FeedbackRow, KeyRow, SplitRow, VerdictRow)]
TRAIL = {"experiment.start", "experiment.promoted", "champion.promote", "key.generate"}


def _key(table: str) -> list[str]:
    return [column.name for column in Base.metadata.tables[table].primary_key]


def _some(chain: Chain, table: str) -> list[dict]:
    """Rows of a table: of many the first, one in the middle and the last."""
    found = rows(chain, f"SELECT * FROM {table} ORDER BY {', '.join(_key(table))}")
    if table == AuditRow.__tablename__:
        assert {row["action"] for row in found} == TRAIL  # another: does the check know of it?
        found = [row for row in found if row["action"] != "key.generate"]
    return found if len(found) <= 3 else [found[0], found[len(found) // 2], found[-1]]


def _named(table: str, row: dict) -> tuple[str, ...]:
    """How the report may name a row that is gone."""
    if table == AuditRow.__tablename__:
        told_of = json.loads(row["evidence"]).get("promotion_id")
        return (told_of or row["subject"].partition(":")[2],)
    if table == FeedbackRow.__tablename__:
        return row["feedback_id"], "→ feedback of"
    if table == tables.DatasetExampleRow.__tablename__:
        return (f"{row['dataset_id']} → example {row['position']}:",)
    if table == tables.RunRow.__tablename__:
        return (f"model_version {row['name']}/{row['version']} → run",)
    return ("/".join(str(row[name]) for name in _key(table)),)


@pytest.mark.parametrize("table", [*LIFECYCLE, *OTHERS])
def test_no_row_goes_unnoticed(written: Chain, mlflow: str, tmp_path: Path, table: str) -> None:
    some = _some(written, table)
    assert some, f"the chain has no row of {table}: write one in lifecycle_rows, and check it"
    for number, row in enumerate(some):
        copy = copied(written, tmp_path / str(number))
        key = " AND ".join(f"{name} = ?" for name in _key(table))
        given = [row[name] for name in _key(table)]
        assert edit(copy, f"DELETE FROM {table} WHERE {key}", *given) == 1
        broken = told(checked(copy, mlflow))
        assert any(name in broken for name in _named(table, row)), (row, broken)
        copy.database.close()


@pytest.mark.parametrize("table", [*LIFECYCLE, *OTHERS, "all"])
def test_no_table_goes_unnoticed(chain: Chain, mlflow: str, table: str) -> None:
    """Not even all of them at once: the log knows what answered."""
    for one in [*LIFECYCLE, *OTHERS] if table == "all" else [table]:
        assert edit(chain, f"DELETE FROM {one}")
    report = checked(chain, mlflow)
    assert not report.whole
    if table == "all":
        assert f"adapter {chain.adapter}" in told(report)


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ("audit", "model rowed → promotion {promotion_id}: not in the state database, but audit"),
        ("split", "model rowed → split: its traffic goes to champion {adapter}, it should go to"),
    ],
)
def test_one_trace_of_an_alias_is_enough(chain: Chain, mlflow: str, kept: str, named: str) -> None:
    for table in {"promotion", "experiment", "audit", "split"} - {kept}:
        assert edit(chain, f"DELETE FROM {table}")
    report = check(sources_of(chain, mlflow), "rowed")
    assert named.format_map(vars(chain)) in told(report)


# What of a row is no link: when, how, in which words, and what was measured.
FREE = {
    "dataset": {"created_at"},
    "dataset_example": set[str](),
    "training": {"base_model", "path", "configuration", "metrics", "git_sha", "created_at"},
    "model_version": {"created_at"},
    "run": {"run_id", "state", "stage", "message", "spec", "git_sha", "started_at", "ended_at"},
    "experiment": {"message", "started_at", "ended_at"},
    "promotion": {"state", "created_at"},
}
EDITS = {  # of what is JSON
    "arms": ('"weight":0.5', '"weight":0.9'),
    "manifest": ('"rows":', '"rows":1'),
    "plan": ('"minimum_users":10', '"minimum_users":3'),
}
LINKS = [
    (table, column.name)
    for table in LIFECYCLE
    for column in Base.metadata.tables[table].columns
    if column.name not in FREE.get(table, set())
]


@pytest.mark.parametrize(("table", "column"), LINKS)
def test_no_edited_column_goes_unnoticed(
    chain: Chain, mlflow: str, table: str, column: str
) -> None:
    (before, *_) = rows(chain, f"SELECT {column} FROM {table} ORDER BY 1")
    other = 99 if isinstance(before[column], int) else "other"
    if column in EDITS:
        other = before[column].replace(*EDITS[column])
        assert other != before[column]
    where = f"{column} IS ? AND rowid = (SELECT min(rowid) FROM {table} WHERE {column} IS ?)"
    statement = f"UPDATE {table} SET {column} = ? WHERE {where}"
    assert edit(chain, statement, other, before[column], before[column]) == 1
    assert told(checked(chain, mlflow))


@pytest.mark.parametrize(
    ("table", "column", "value", "named"),
    [
        ("experiment", "plan", "{}", "experiment {experiment_id} → its row: cannot be read"),
        ("experiment", "arms", '[{"variant": {}}]', "experiment {experiment_id} → its row"),
        ("verdict", "evidence", "[]", "model_version rowed/1 → its row"),
        ("split", "arms", "[{}]", "model rowed → its row: cannot be read (ValueError"),
        ("dataset", "manifest", "[]", "dataset {dataset_id} → manifest: not a data"),
        (
            "dataset",
            "manifest",
            '{"files": 3}',
            "dataset {dataset_id} → manifest: not a data",
        ),
    ],
)
def test_a_row_that_cannot_be_read_ends_nothing_else(
    chain: Chain, mlflow: str, table: str, column: str, value: str, named: str
) -> None:
    assert edit(chain, f"UPDATE {table} SET {column} = ?", value)
    report = checked(chain, mlflow)
    assert named.format_map(vars(chain)) in told(report)
    assert "rowed/1" in report.versions
    assert len(report.links) > 15


def test_a_link_that_is_nothing_is_no_link(written: Chain, mlflow: str, tmp_path: Path) -> None:
    cut = 0
    for table, name in LINKS:
        column = Base.metadata.tables[table].columns[name]
        if column.nullable and rows(written, f"SELECT 1 FROM {table} WHERE {name} IS NOT NULL"):
            copy = copied(written, tmp_path / f"{table}-{name}")
            edit(copy, f"UPDATE {table} SET {name} = NULL")
            assert told(checked(copy, mlflow)), (table, name)
            copy.database.close()
            cut += 1
    assert cut >= 8
