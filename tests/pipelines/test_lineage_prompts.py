"""Lineage of prompt experiments: from any id to all others, and every link that may be cut."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.migrations import upgrade
from evals.records import Decision
from gateway.database import Database, open_database
from gateway.feedback import FeedbackStore, NewFeedback
from gateway.lineage import Edge, lineage
from gateway.lineage_links import GatewayLinks
from gateway.records import Status
from gateway.request_log import LogReader
from pipelines.champion import Services
from pipelines.engines import NothingToLoad
from pipelines.experiment import conclude, examine, under_way
from pipelines.lineage_check import Report, Sources, check
from pipelines.lineage_links import PipelineLinks
from pipelines.lineage_mlflow import MLflowFacts
from pipelines.observations import Observations
from pipelines.prompt_labels import LabelFollower
from pipelines.prompt_links import PromptLinks
from pipelines.prompt_registry import PromptRegistry
from pipelines.tables import ExperimentRow
from tests.pipelines.lineage_damage import TRIGGERS, told
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.prompt_trial import METRICS, begin, first, plan, prompt, put, state_of
from tests.spooled_requests import final, record, write_segment

NAME = "traced"
TEXTS = {"1": "Greet {{ who }}.", "2": "Greet {{ who }} kindly."}


@dataclass(frozen=True, slots=True)
class Tried:
    """A home in which version 2 won, was watched, and was taken back for its errors."""

    home: Path
    database: Database
    tracking_uri: str
    won: str
    watch: str

    @property
    def reader(self) -> LogReader:
        return LogReader(self.home / "spool", str(self.home / "log" / "requests"))

    def checked(self, name: str | None = None) -> Report:
        mlflow = MLflowFacts(self.tracking_uri)
        return check(Sources(self.database, self.reader, mlflow), name)

    def edit(self, statement: str) -> None:
        """Change rows behind everybody's back."""
        self.database.close()
        with closing(sqlite3.connect(self.home / "state.db")) as connection:
            for trigger in TRIGGERS:
                connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            assert connection.execute(statement).rowcount > 0
            connection.commit()


def ask(home: Path, database: Database, row: ExperimentRow, users: range, failing: str) -> None:
    """A request of each user, and feedback of those that were answered; `failing` answers none."""
    split = state_of(database, NAME).split
    assert split is not None
    store, records, heard = FeedbackStore(database, METRICS), [], []
    for number in users:
        variant = split.choose("acme", f"user-{number}")
        version = str(variant.prompt_version)
        broken = version == failing
        one = record(
            user=f"user-{number}", tenant="acme", model="chat", experiment=row.experiment_id,
            variant=variant.name, prompt_name=NAME, prompt_version=version,
            status=Status.UPSTREAM_ERROR if broken else Status.OK, latency_ms=5.0,
        )  # fmt: skip
        records.append(final(one))
        heard += [] if broken else [(one.request_id, version == "2")]
    write_segment(home / "spool", *records)
    for reference, value in heard:
        given = NewFeedback(
            "acme", "key-1", metric_name="helpful", value=value, reference=reference
        )
        store.add(given)


def decide(home: Path, database: Database) -> ExperimentRow:
    """What the controller does with what is under way."""
    (row,) = under_way(database)
    reader = LogReader(home / "spool", str(home / "log" / "requests"))
    finding = examine(row, Observations(database, reader, row))
    services = Services(database, NothingToLoad())
    return asyncio.run(conclude(services, row.experiment_id, finding))


@pytest.fixture(scope="module")
def written(
    mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tried]:
    home = tmp_path_factory.mktemp("traced") / "home"
    home.mkdir()
    url = f"sqlite:///{home / 'state.db'}"
    upgrade(url)
    database = open_database(url)
    registry = PromptRegistry(mlflow_server.url, seconds=10)
    for version, said in TEXTS.items():
        put(database, version, prompt(NAME, said))
        assert registry.put(prompt(NAME, said), {}) == version
    first(database, NAME)
    guarded = plan(guardrails=[{"metric": "errors"}], holdback=0.3)
    row = asyncio.run(begin(database, NAME, "2", plan=guarded))
    ask(home, database, row, range(60), failing="none")
    assert decide(home, database).state == "promoted"
    (watch,) = under_way(database)
    ask(home, database, watch, range(60, 120), failing="2")
    assert decide(home, database).state == "rolled_back"
    LabelFollower(database, registry).follow(NAME)
    yield Tried(home, database, mlflow_server.url, row.experiment_id, watch.experiment_id)
    database.close()


@pytest.fixture
def tried(written: Tried, tmp_path: Path) -> Iterator[Tried]:
    written.database.close()
    shutil.copytree(written.home, tmp_path / "home")
    database = open_database(f"sqlite:///{tmp_path / 'home' / 'state.db'}")
    copy = Tried(tmp_path / "home", database, written.tracking_uri, written.won, written.watch)
    yield copy
    database.close()


def test_from_any_id_to_all_others(written: Tried) -> None:
    links = [part(written.database, written.reader) for part in (GatewayLinks, PipelineLinks,
                                                                 PromptLinks)]  # fmt: skip
    found = lineage(written.won, links)
    kinds = {node.kind for node in found.nodes.values()}
    assert {"experiment", "verdict", "prompt", "prompt_move", "request", "feedback"} <= kinds
    assert "model" not in kinds and "model_version" not in kinds
    verdict = next(node for node in found.nodes.values() if node.kind == "verdict")
    move = next(node for node in found.nodes.values() if node.kind == "prompt_move")
    assert (verdict.details["decision"], move.details["kind"]) == (Decision.PROMOTE, "promote")
    for start in (verdict.id, move.id, f"{NAME}@2", f"prompt:{NAME}", written.watch):
        names = set(lineage(start, links).nodes)
        assert f"prompt:{NAME}@2" in names, start
        assert {f"experiment:{one}" for one in (written.won, written.watch)} & names, start
    back = lineage(written.watch, links).nodes.values()
    assert [one.details["kind"] for one in back if one.kind == "prompt_move"] == ["rollback"]
    watches = Edge(f"experiment:{written.watch}", "watches", f"experiment:{written.won}")
    assert watches in found.edges and watches in lineage(written.watch, links).edges
    request = next(node for node in found.nodes.values() if node.kind == "request")
    assert f"experiment:{written.won}" in lineage(request.id, links).nodes


def test_it_is_whole(written: Tried) -> None:
    report = written.checked()
    assert report.whole, told(report)
    assert report.versions == (f"prompt:{NAME}/1", f"prompt:{NAME}/2")
    assert written.checked(f"prompt:{NAME}").whole
    said = {f"{link.of} → {link.to}" for link in report.links}
    for experiment in (written.won, written.watch):
        assert {f"experiment {experiment} → {to}" for to in (
            f"prompt {NAME}@2", "arms", "promotion", "audit row experiment.start"
        )} <= said  # fmt: skip


def test_while_one_is_under_way(tried: Tried) -> None:
    asyncio.run(begin(tried.database, NAME, "2", unjudged="once more"))
    report = tried.checked()
    assert report.whole, told(report)
    tried.edit("UPDATE split SET salt = 'ab', arms = replace(arms, '0.5', '0.6')")
    assert f"prompt {NAME} → split" in told(tried.checked())


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DELETE FROM experiment WHERE state = 'promoted'", "experiment {won}"),
        ("DELETE FROM verdict", "experiment {won} → verdict"),
        ("UPDATE verdict SET decision = 'hold' WHERE decision = 'promote'", "it says hold"),
        ("UPDATE experiment SET version = '1' WHERE state = 'promoted'", "experiment {won} → arms"),
        ("UPDATE experiment SET arms = replace(arms, '\"2\"', '\"7\"')", "arms"),
        ("DELETE FROM audit WHERE action = 'prompt.promote'", "experiment {won} → promotion"),
        ("DELETE FROM audit WHERE action = 'prompt.rollback'", "experiment {watch} → promotion"),
        ("DELETE FROM audit WHERE action = 'experiment.start'", "audit row experiment.start"),
        ("DELETE FROM prompt_version WHERE version = '2'", "prompt traced@2"),
        ("UPDATE prompt_version SET content = replace(content, 'kindly', 'rudely')",
         "prompt traced@2 → content"),
        ("UPDATE prompt_label SET version = '2'", "prompt traced → production"),
        ("DELETE FROM feedback", "feedback of challenger users"),
        ("INSERT INTO split SELECT 'prompt:traced', experiment_id, 'ab', arms, 1 FROM experiment"
         " LIMIT 1", "prompt traced → split"),
    ],
)  # fmt: skip
def test_what_is_cut_is_named(tried: Tried, statement: str, named: str) -> None:
    tried.edit(statement)
    report = tried.checked()
    assert not report.whole
    assert named.format(won=tried.won, watch=tried.watch) in told(report)
