"""The lineage check and what may be gone: people that were forgotten, rows that were too old."""

import fcntl
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.database import now
from pipelines import lineage_erasures
from pipelines.lineage_check import LinkState, Report
from pipelines.workspace import Workspace
from tests.pipelines.lifecycle_rows import Chain, write_chain
from tests.pipelines.lineage_damage import (
    checked,
    edit,
    erase,
    forget_requests,
    keep_files,
    rows,
    settings_of,
    told,
)
from tests.pipelines.mlflow_server import MLflowServer

pytest_plugins = ("tests.pipelines.written_chain",)


@pytest.fixture(scope="module")
def written(
    mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    home = tmp_path_factory.mktemp("chain")
    chain = write_chain(home, name="gaps", tracking_uri=mlflow_server.url, ship=True)
    keep_files(chain)
    yield chain
    chain.database.close()


def erased(report: Report) -> dict[str, str]:
    """What was found of the links that were cut by order."""
    return {link.to: link.found for link in report.links if link.state is LinkState.ERASED}


def test_a_forgotten_user_of_the_training(chain: Chain, mlflow: str) -> None:
    """`first-1` sent the requests 2 and 3; their rows stay, without bodies and name."""
    erase(chain, mlflow, "first-1")
    report = checked(chain, mlflow)
    assert report.whole, told(report)
    assert erased(report).keys() == {f"feedback {chain.feedback[n]}" for n in (2, 3)}
    assert report.summary.endswith("all there, 2 erased by order")
    (order,) = rows(chain, "SELECT id FROM audit WHERE action = 'log.erase'")
    assert set(erased(report).values()) == {f"erased (order {order['id']})"}


def test_a_user_whose_rows_were_deleted(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "first-1", "--delete-rows")
    report = checked(chain, mlflow)
    assert report.whole, told(report)
    gone = [f"feedback {chain.feedback[n]}" for n in (2, 3)]
    gone += [f"request {chain.requests[n]}" for n in (2, 3)]
    assert sorted(erased(report)) == sorted(gone)


@pytest.mark.parametrize("options", [(), ("--delete-rows",)])
def test_forgotten_users_of_the_experiment(
    chain: Chain, mlflow: str, options: tuple[str, ...]
) -> None:
    """`later-N` sent a request of the experiment; the first four one after it, too."""
    for number in (3, 7, 8):
        erase(chain, mlflow, f"later-{number}", *options)
    report = checked(chain, mlflow)
    assert report.whole, told(report)
    found = erased(report)
    assert found
    assert all("users: erased (order " in text for text in found.values())
    assert {text.partition(" of ")[0] for text in found} <= {"requests", "feedback"}


def test_an_order_excuses_no_more_than_it_touched(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "first-1")
    assert edit(chain, "DELETE FROM feedback WHERE feedback_id = ?", chain.feedback[0])
    report = checked(chain, mlflow)
    assert f"feedback {chain.feedback[0]}: not in the state database" in told(report)
    assert len(report.broken) == 1


def test_an_order_excuses_only_what_looks_like_it(chain: Chain, mlflow: str) -> None:
    """It cleared rows; a row that is not there at all was lost in another way, and the reverse."""
    erase(chain, mlflow, "first-1")
    forget_requests(chain, [chain.requests[2]])
    broken = told(checked(chain, mlflow))
    assert f"request {chain.requests[2]}: not in the request log, and neither" in broken
    assert f"feedback {chain.feedback[2]}" in broken
    assert f"feedback {chain.feedback[3]}" not in broken


def test_an_order_for_deleted_rows_does_not_excuse_a_fourth(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "first-1", "--delete-rows")
    forget_requests(chain, [chain.requests[0], chain.requests[5]])
    assert len(checked(chain, mlflow).broken) == 2


def test_users_of_the_experiment_beyond_the_order(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "later-7")
    lost = [chain.heard[8], chain.heard[9]]
    assert edit(chain, "DELETE FROM feedback WHERE feedback_id IN (?, ?)", *lost) == 2
    broken = told(checked(chain, mlflow))
    assert f"verdict {chain.decision_id} → feedback of" in broken
    assert "users are there" in broken


def test_an_order_before_the_requests_explains_nothing(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "first-1")
    assert edit(chain, "UPDATE audit SET ts = '2020-01-01' WHERE action = 'log.erase'")
    assert len(checked(chain, mlflow).broken) == 2


def test_without_its_audit_row_an_order_was_none(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "first-1", "--delete-rows")
    assert edit(chain, "DELETE FROM audit WHERE action = 'log.erase'")
    assert len(checked(chain, mlflow).broken) == 4


def test_age_explains_requests_and_no_feedback(
    chain: Chain, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = now() + timedelta(days=12)
    monkeypatch.setattr(lineage_erasures, "now", lambda: later)
    forget_requests(chain, [*chain.requests, *chain.tried])
    report = checked(chain, mlflow, retain_days=10)
    assert report.whole, told(report)
    assert erased(report)[f"request {chain.requests[0]}"] == "expired (log.retain_days is 10)"
    assert len(erased(report)) == len(chain.requests) + 4
    assert not checked(chain, mlflow, retain_days=20).whole
    assert not checked(chain, mlflow).whole
    assert edit(chain, "DELETE FROM feedback WHERE feedback_id = ?", chain.feedback[4])
    (link,) = checked(chain, mlflow, retain_days=10).broken
    assert link.to == f"feedback {chain.feedback[4]}"


def test_forgotten_first_and_expired_later(
    chain: Chain, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase(chain, mlflow, "first-1")
    later = now() + timedelta(days=12)
    monkeypatch.setattr(lineage_erasures, "now", lambda: later)
    forget_requests(chain, chain.requests)
    report = checked(chain, mlflow, retain_days=10)
    assert report.whole, told(report)
    assert "order" in erased(report)[f"feedback {chain.feedback[2]}"]


def workspace_of(chain: Chain) -> Workspace:
    return Workspace(settings_of(chain), chain.name)


def lose(chain: Chain, *names: str) -> None:
    """Remove DVC's cache, the remote, or the pins that lead to both."""
    workspace = workspace_of(chain)
    places = {
        "cache": workspace.folder / ".dvc" / "cache",
        "fetched": workspace.folder / "pins" / chain.dataset_id,
        "pins": workspace.folder / "pins",
        "remote": Path(workspace.remote.url),
    }
    for name in names:
        shutil.rmtree(places[name])


def by_dvc(chain: Chain, mlflow: str) -> Report:
    def fetch(name: str, dataset_id: str) -> Path:
        return Workspace(settings_of(chain), name).checkout(dataset_id)

    return checked(chain, mlflow, fetch=fetch)


def test_files_come_from_the_cache_or_from_the_remote(chain: Chain, mlflow: str) -> None:
    lose(chain, "pins", "cache")
    report = by_dvc(chain, mlflow)
    assert report.whole, told(report)
    (files,) = [link for link in report.links if link.to == "files"]
    assert files.found == str(workspace_of(chain).folder / "pins" / chain.dataset_id)


def test_files_that_are_nowhere(chain: Chain, mlflow: str) -> None:
    lose(chain, "cache", "fetched")
    shutil.rmtree(Path(workspace_of(chain).remote.url) / "files")
    (link,) = by_dvc(chain, mlflow).broken
    assert (link.of, link.to) == (f"dataset {chain.dataset_id}", "files")
    assert "dvc pull" in link.found and "copy of LLMOPS_HOME/dvc" in link.found


def test_files_that_nothing_leads_to(chain: Chain, mlflow: str) -> None:
    lose(chain, "pins", "remote")
    (link,) = by_dvc(chain, mlflow).broken
    assert f"there is no data set '{chain.dataset_id}' of gaps here" in link.found


def test_files_go_with_a_person_who_was_in_them(chain: Chain, mlflow: str) -> None:
    """A frozen data set is a copy: who forgets a person deletes it, too."""
    erase(chain, mlflow, "first-1")
    lose(chain, "pins", "remote")
    report = by_dvc(chain, mlflow)
    assert report.whole, told(report)
    assert erased(report)["files"].startswith("gone, as some of its examples are: ")
    assert edit(chain, "DELETE FROM dataset_example WHERE position = 0")
    assert "example 0" in told(by_dvc(chain, mlflow))


def test_files_that_were_changed_are_no_erasure(chain: Chain, mlflow: str) -> None:
    erase(chain, mlflow, "first-1")
    path = chain.dataset_path / "train.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    (link,) = checked(chain, mlflow).broken
    assert link.to == "files"
    assert "its SHA-256 is" in link.found


def test_a_run_under_way_holds_the_files(chain: Chain, mlflow: str) -> None:
    with (workspace_of(chain).folder / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (link,) = by_dvc(chain, mlflow).broken
    assert link.to == "files"
    assert link.found.startswith("cannot be checked: ")
    assert "is under way" in link.found
