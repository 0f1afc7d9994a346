"""The lineage check: a whole chain is whole, and what is cut is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from gateway.errors import NotFound
from pipelines.lineage_check import LinkState, check
from rlhf.adapter import WEIGHTS
from tests.gateway_process import free_port
from tests.pipelines.lifecycle_rows import Chain, write_adapter, write_chain
from tests.pipelines.lineage_damage import (
    checked,
    copied,
    edit,
    forget_requests,
    sources_of,
    told,
)

pytest_plugins = ("tests.pipelines.written_chain",)
NAME = "checked"


def test_a_whole_chain_is_whole(chain: Chain, mlflow: str) -> None:
    report = checked(chain, mlflow)
    assert report.whole, told(report)
    assert report.versions == ("checked/1",)
    assert {link.state for link in report.links} == {LinkState.OK}
    assert report.summary == f"checked/1: {len(report.links)} links, all there"
    seen = " ".join(f"{link.of} {link.to}" for link in report.links)
    for kind, identifier in chain.ids.items():
        if kind not in ("request", "feedback", "key"):  # counted: they are many
            assert f"{kind} {identifier}" in seen
    counted = {link.to: link.found for link in report.links if link.of.startswith("dataset")}
    assert counted["feedback"] == counted["requests"] == "12 of 12"
    assert counted["keys"] == "1 of 1"


def test_without_files_they_are_not_looked_at(chain: Chain, mlflow: str) -> None:
    shutil.rmtree(chain.dataset_path)
    assert checked(chain, mlflow, fetch=None).whole
    assert "files" in told(checked(chain, mlflow))


def _adapter_changed(chain: Chain) -> str:
    shutil.rmtree(chain.adapter_path)
    write_adapter(chain.adapter_path, seed=2)
    return f"adapter {chain.adapter}: {chain.adapter_path} has the digest"


def _adapter_gone(chain: Chain) -> str:
    shutil.rmtree(chain.adapter_path)
    return f"no whole model in {chain.adapter_path}; fetch it again: mlflow artifacts download"


def _weights_gone(chain: Chain) -> str:
    (chain.adapter_path / WEIGHTS).unlink()
    return f"no whole model in {chain.adapter_path}"


def _files_gone(chain: Chain) -> str:
    shutil.rmtree(chain.dataset_path)
    return f"dataset {chain.dataset_id} → files: {chain.dataset_path}"


def _files_changed(chain: Chain) -> str:
    path = chain.dataset_path / "validation.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"completion": "', b'"completion": " ', 1))
    return f"{path}: its SHA-256 is"


def _other_files(chain: Chain) -> str:
    """Another data set, whole in itself, in the place of this one."""
    _files_changed(chain)
    path = chain.dataset_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"name": "other", "dataset_id": "0" * 32}))
    return f"dataset {chain.dataset_id} → files"


def _manifest_edited(chain: Chain) -> str:
    edit(chain, "UPDATE dataset SET manifest = replace(manifest, '\"rows\":', '\"rows\":1')")
    return f"dataset {chain.dataset_id} → manifest: says {chain.dataset_id}, but its content"


def _example_edited(chain: Chain) -> str:
    """It names a request and feedback that are there, and are another example's."""
    edit(
        chain,
        "UPDATE dataset_example SET request_id = ?, feedback_id = ? WHERE position = 1",
        chain.tried[0],
        chain.heard[0],
    )
    return "its files name other requests or feedback than the state database"


def _split_moved(chain: Chain) -> str:
    assert edit(chain, "UPDATE split SET arms = replace(arms, ?, 'other-1')", chain.adapter)
    return (
        f"model checked → split: its traffic goes to champion other-1, it should go to "
        f"champion {chain.adapter}"
    )


def _split_kept_in_experiment(chain: Chain) -> str:
    assert edit(chain, "UPDATE split SET experiment_id = ?", chain.experiment_id)
    return f"split: its traffic goes to champion {chain.adapter} (experiment"


def _request_gone(chain: Chain) -> str:
    forget_requests(chain, chain.requests[3:4])
    return f"dataset {chain.dataset_id} → request {chain.requests[3]}: not in the request log"


def _all_requests_gone(chain: Chain) -> str:
    forget_requests(chain, chain.requests)
    return f"request {chain.requests[-1]}: not in the request log"


def _tried_gone(chain: Chain) -> str:
    forget_requests(chain, chain.tried[7:8])
    return f"verdict {chain.decision_id} → requests of"


def _all_tried_gone(chain: Chain) -> str:
    forget_requests(chain, chain.tried)
    return f"verdict {chain.decision_id} → requests of champion users: 0 of"


def _heard_gone(chain: Chain) -> str:
    assert edit(chain, "DELETE FROM feedback WHERE feedback_id = ?", chain.heard[7]) == 1
    return f"verdict {chain.decision_id} → feedback of"


def _all_heard_gone(chain: Chain) -> str:
    assert edit(chain, "DELETE FROM feedback WHERE metric_name = 'helpful'") == len(chain.heard)
    return f"verdict {chain.decision_id} → feedback of challenger users: 0 of"


def _key_gone(chain: Chain) -> str:
    assert edit(chain, "DELETE FROM virtual_key") == 1
    return f"dataset {chain.dataset_id} → key {chain.key_id}: not in the state database"


def _feedback_gone(chain: Chain) -> str:
    assert edit(chain, "DELETE FROM feedback WHERE feedback_id = ?", chain.feedback[0]) == 1
    return f"dataset {chain.dataset_id} → feedback {chain.feedback[0]}: not in the state database"


def _feedback_of_another_tenant(chain: Chain) -> str:
    assert edit(chain, "UPDATE feedback SET tenant = 'b' WHERE feedback_id = ?", chain.feedback[2])
    return f"feedback {chain.feedback[2]} is of tenant b"


def _feedback_on_another_request(chain: Chain) -> str:
    statement = "UPDATE feedback SET request_id = ? WHERE feedback_id = ?"
    assert edit(chain, statement, chain.requests[0], chain.feedback[2])
    return f"feedback {chain.feedback[2]} is of tenant acme, on request {chain.requests[0]}"


DAMAGES: list[Callable[[Chain], str]] = [
    _adapter_changed, _adapter_gone, _weights_gone, _files_gone, _files_changed, _other_files,
    _manifest_edited, _example_edited, _split_moved, _split_kept_in_experiment, _request_gone,
    _all_requests_gone, _tried_gone, _all_tried_gone, _heard_gone, _all_heard_gone, _key_gone,
    _feedback_gone, _feedback_of_another_tenant, _feedback_on_another_request,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_what_is_cut_is_named(chain: Chain, mlflow: str, damage: Callable[[Chain], str]) -> None:
    expected = damage(chain)
    report = checked(chain, mlflow)
    assert expected in told(report)
    assert f"{len(report.broken)} of {len(report.links)} links are broken" in report.summary


def test_requests_that_are_only_in_the_spool(mlflow: str, tmp_path: Path) -> None:
    written = write_chain(tmp_path / "written", name="spooled", tracking_uri=mlflow)
    assert checked(written, mlflow).whole
    chain = copied(written, tmp_path / "copy")
    forget_requests(chain, [chain.requests[0], chain.tried[0]])
    broken = told(checked(chain, mlflow))
    assert f"request {chain.requests[0]}" in broken
    assert f"verdict {chain.decision_id} → requests of" in broken
    chain.database.close()


def test_mlflow_away_is_one_broken_link(chain: Chain) -> None:
    report = checked(chain, f"http://127.0.0.1:{free_port()}")
    (link,) = report.broken
    assert (link.of, link.to) == ("registry", "MLflow")
    assert "bring MLflow back, then check again" in link.found
    assert report.versions == ("checked/1",)
    assert len(report.links) > 25  # the rest is checked all the same


def test_a_model_that_is_not_known(chain: Chain, mlflow: str) -> None:
    with pytest.raises(NotFound, match=r"no model 'nobody'.*there are: checked"):
        check(sources_of(chain, mlflow), "nobody")
    assert check(sources_of(chain, mlflow), "checked") == check(sources_of(chain, mlflow))


def test_as_many_queries_for_many_examples_as_for_few(tmp_path: Path) -> None:
    asked = []
    for examples in (8, 800):
        chain = write_chain(tmp_path / str(examples), examples=examples)
        statements: list[str] = []
        event.listen(
            chain.database.engine,
            "before_cursor_execute",
            lambda *given, kept=statements: kept.append(given[2]),
        )
        checked(chain, f"http://127.0.0.1:{free_port()}")
        asked.append(len(statements))
        chain.database.close()
    assert asked[0] == asked[1] < 120
