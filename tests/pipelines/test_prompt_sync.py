"""From files in Git to versions in MLflow and the state database: once each, and never halfway."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from deploy.migrations import upgrade
from gateway.audit import AuditFilter, entries
from gateway.database import Conflict, Database, open_database
from gateway.prompt_versions import PromptVersionRow, label_of, labels_of, versions_of
from pipelines.mlflow_api import MLflowAPI
from pipelines.prompt_registry import PromptRegistry, registered_name
from pipelines.prompt_sync import Synced, SyncOrder, read_sources, sync
from pipelines.registry import RegistryUnavailable
from prompts.library import LIBRARY, BadPromptFile
from tests.gateway_process import free_port
from tests.pipelines.mlflow_server import MLflowServer
from tests.pipelines.prompt_files import PromptFolder

UNCHANGED_SECONDS = 5.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    upgrade(url)
    opened = open_database(url)
    yield opened
    opened.close()


@pytest.fixture
def registry(mlflow_server: MLflowServer) -> PromptRegistry:
    return PromptRegistry(mlflow_server.url, seconds=10)


@pytest.fixture
def files(tmp_path: Path) -> PromptFolder:
    return PromptFolder(tmp_path / "repository")


@pytest.fixture
def synced(database, registry, files):
    """Sync the folder as it is now; what became of each prompt, by name."""

    def run(**order: bool) -> dict[str, Synced]:
        done = sync(database, registry, read_sources(files.folder), SyncOrder("anna", **order))
        return {one.name: one for one in done}

    return run


def rows(database: Database) -> list[PromptVersionRow]:
    with database.session() as session:
        query = select(PromptVersionRow).order_by(PromptVersionRow.changed)
        return list(session.scalars(query))


def production(database: Database, name: str) -> str | None:
    with database.session() as session:
        return label_of(session, name, "production")


def mlflow_tags(server: MLflowServer, name: str, version: str) -> dict[str, str]:
    found = MLflowAPI(server.url, seconds=10).get(
        "model-versions/get", name=registered_name(name), version=version
    )
    return {one["key"]: one["value"] for one in found["model_version"]["tags"]}


def test_a_content_becomes_one_version_with_its_origin(synced, database, files, mlflow_server):
    files.write("sync-one")
    sha = files.commit()
    done = synced()["sync-one"]
    assert (done.version, done.made, done.git_sha) == ("1", True, sha)
    (row,) = rows(database)
    assert (row.name, row.version, row.git_sha, row.path) == (
        "sync-one", "1", sha, "prompts/sync-one.yaml",
    )  # fmt: skip
    assert row.prompt.render({"who": "Ann"})[0]["content"] == "Greet Ann"
    assert row.content_hash == row.prompt.content_hash == done.content_hash
    tags = mlflow_tags(mlflow_server, "sync-one", "1")
    assert (tags["git_sha"], tags["path"]) == (sha, row.path)
    assert tags["content_hash"] == row.content_hash


def test_again_changes_nothing_and_a_former_content_is_its_former_version(synced, database, files):
    files.write("sync-again")
    first = files.commit()
    synced()
    before = rows(database)
    files.commit()
    assert not synced()["sync-again"].made
    assert [row.changed for row in rows(database)] == [row.changed for row in before]
    files.write("sync-again", "Welcome")
    second = files.commit()
    assert synced()["sync-again"].version == "2"
    path = files.write("sync-again", "Greet")
    path.write_text(path.read_text().replace("asks sync-again", "another description"))
    files.commit()
    back = synced()["sync-again"]
    assert (back.version, back.made, back.git_sha) == ("1", False, first)
    assert [(row.version, row.git_sha) for row in rows(database)] == [("1", first), ("2", second)]


def test_what_git_does_not_have_is_said(synced, database, files):
    files.write("sync-clean")
    path = files.write("sync-dirty")
    sha = files.commit()
    path.write_text(path.read_text().replace("Greet", "Shout at"))
    files.write("sync-new")
    (files.root / "other.txt").write_text("changed elsewhere")
    done = synced()
    assert {name: one.git_sha for name, one in done.items()} == {
        "sync-clean": sha,
        "sync-dirty": f"{sha}-dirty",
        "sync-new": f"{sha}-dirty",
    }
    (files.root / ".git").rename(files.root / "gone")
    files.write("sync-bare")
    bare = synced()["sync-bare"]
    assert bare.git_sha is None
    assert rows(database)[-1].path == str(files.folder / "sync-bare.yaml")


def test_the_first_sync_of_an_installation_labels_and_no_other_unless_told(synced, database, files):
    files.write("sync-label")
    assert synced()["sync-label"].labelled
    assert production(database, "sync-label") == "1"
    files.write("sync-label", "Welcome")
    files.write("sync-late")
    assert not any(one.labelled for one in synced().values())
    assert production(database, "sync-label") == "1"
    assert production(database, "sync-late") is None
    told = synced(first_label=True)
    assert (told["sync-label"].labelled, told["sync-late"].labelled) == (False, True)
    assert production(database, "sync-label") == "1"
    assert not any(one.labelled for one in synced(first_label=True).values())
    with database.session() as session:
        moves = [one.change for one in entries(session, AuditFilter(action="prompt.first"))]
    assert [(one.subject, one.actor) for one in moves] == [
        ("prompt:sync-late", "anna"), ("prompt:sync-label", "anna"),
    ]  # fmt: skip
    assert moves[0].after == {"label": "production", "version": "1"}
    assert moves[0].evidence is not None and len(moves[0].evidence["content_hash"]) == 64


@pytest.mark.parametrize(
    ("more", "line", "said"),
    [
        ("shoe: 1\n", 10, "shoe: Extra inputs"),
        ("model: x\n", 10, "the key 'model' stands twice"),
        ("evaluation: {gate: [{metric: latency}]}\n", 10, "evaluation.gate.0.minimum_n: Field req"),
        ("evaluation: {gate: [{metric: m, minimum_n: 0}]}\n", 10, "greater than or equal to 1"),
        ("evaluation: {fields: {user_input: gone}}\n", 10, "gone: no such variable"),
    ],
)
def test_one_bad_file_and_nothing_is_written(
    synced, database, registry, files, more, line, said
):  # fmt: skip
    files.write("sync-good")
    files.write("sync-wrong", more=more)
    with pytest.raises(BadPromptFile) as refused:
        synced()
    assert str(refused.value).startswith(f"{files.folder}/sync-wrong.yaml:{line}: ")
    assert said in str(refused.value)
    assert rows(database) == []
    assert registry.lacks("sync-good")


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ("{temperature: hot}", "params.temperature: "),
        ("{max_tokens: -1}", "params.max_tokens: "),
        ("{api_base: 'http://x'}", "params.api_base: not for a prompt to set"),
        ("{retrieved_contexts: []}", "params.retrieved_contexts: not for a prompt to set"),
        ("{stream: true}", "params.stream: not for a prompt to set"),
    ],
)
def test_parameters_are_those_of_a_request(files, params, said):
    path = files.write("sync-params")
    path.write_text(path.read_text().replace("{temperature: 0, max_tokens: 9}", params))
    with pytest.raises(BadPromptFile, match=r"sync-params\.yaml:9: ") as refused:
        read_sources(files.folder)
    assert said in str(refused.value)


def test_what_is_too_large_for_mlflow_is_told_before(files):
    path = files.write("sync-large", said="x" * 99_990)
    assert path.stat().st_size < 110_000
    with pytest.raises(BadPromptFile, match=r"sync-large\.yaml:1: prompt: .*MLflow takes 100000"):
        read_sources(files.folder)


def test_a_folder_without_prompts_is_told(files, tmp_path):
    with pytest.raises(BadPromptFile, match="no prompt file"):
        read_sources(files.folder)
    with pytest.raises(FileNotFoundError):
        read_sources(tmp_path / "nowhere")


def test_with_mlflow_away_nothing_is_written(database, files):
    files.write("sync-away")
    registry = PromptRegistry(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnavailable, match="is away"):
        sync(database, registry, read_sources(files.folder), SyncOrder("anna"))
    assert rows(database) == []


class Failing(PromptRegistry):
    """Loses MLflow after one version."""

    puts = 0

    def put(self, prompt, tags):
        self.puts += 1
        if self.puts > 1:
            raise RegistryUnavailable("the model registry is away")
        return super().put(prompt, tags)


def test_one_that_was_broken_off_is_seen_by_nobody_and_done_again(
    synced, database, files, mlflow_server
):
    for name in ("sync-half-a", "sync-half-b"):
        files.write(name)
    failing = Failing(mlflow_server.url, seconds=10)
    with pytest.raises(RegistryUnavailable):
        sync(database, failing, read_sources(files.folder), SyncOrder("anna"))
    assert rows(database) == []
    assert not failing.lacks("sync-half-a")
    done = synced()
    assert {one.version for one in done.values()} == {"1"}
    assert all(one.made and one.labelled for one in done.values())


def test_two_at_once_make_one_version(database, registry, files):
    files.write("sync-twice")
    sources = read_sources(files.folder)
    ready, done = threading.Barrier(2), []

    def run() -> None:
        ready.wait()
        done.extend(sync(database, registry, sources, SyncOrder("anna")))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert {one.version for one in done} == {row.version for row in rows(database)}
    assert sorted(one.labelled for one in done) == [False, True]


def test_an_emptied_mlflow_gets_its_versions_back(
    synced, database, registry, files, mlflow_server
):  # fmt: skip
    files.write("sync-back")
    synced()
    files.write("sync-back", "Welcome")
    synced()
    api = MLflowAPI(mlflow_server.url, seconds=10)
    api.delete("registered-models/delete", {"name": registered_name("sync-back")})
    files.write("sync-back", "Cheer")
    assert synced()["sync-back"].version == "3"
    first, second, _ = rows(database)
    assert registry.find("sync-back", first.content_hash) == "1"
    assert registry.find("sync-back", second.content_hash) == "2"
    assert len(rows(database)) == 3


def test_a_number_never_stands_for_two_contents(synced, database, registry, files, mlflow_server):
    files.write("sync-clash")
    synced()
    api = MLflowAPI(mlflow_server.url, seconds=10)
    api.delete("registered-models/delete", {"name": registered_name("sync-clash")})
    files.write("sync-clash", "Welcome")
    registry.put(read_sources(files.folder)[0].prompt, {})  # from another installation
    before = rows(database)
    with pytest.raises(Conflict, match="restore both from copies of one time"):
        synced()
    assert [row.content_hash for row in rows(database)] == [row.content_hash for row in before]


def test_a_number_that_mlflow_gives_anew_is_not_taken(
    synced, database, registry, files, mlflow_server
):
    files.write("sync-anew")
    synced()
    api = MLflowAPI(mlflow_server.url, seconds=10)
    api.delete("registered-models/delete", {"name": registered_name("sync-anew")})
    stranger = files.write("sync-anew", "Cheer")
    registry.put(read_sources(files.folder)[0].prompt, {})
    files.write("sync-anew", "Welcome")
    with pytest.raises(Conflict, match="MLflow has it not"):
        synced()
    assert stranger.exists() and len(rows(database)) == 1


def test_an_unchanged_library_is_synced_within_seconds(database, registry):
    order = SyncOrder("anna")
    done = sync(database, registry, read_sources(LIBRARY), order)
    assert {one.name for one in done} >= {"assistant", "ticket-classifier", "extractor", "judge"}
    began = time.monotonic()
    again = sync(database, registry, read_sources(LIBRARY), order)
    assert time.monotonic() - began < UNCHANGED_SECONDS
    assert not any(one.made or one.labelled for one in again)
    with database.session() as session:
        for one in again:
            assert labels_of(session, one.name) == {"production": one.version}
            assert [row.version for row in versions_of(session, one.name)] == [one.version]
