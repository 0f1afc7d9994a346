"""contract test: InferenceServices as the registry's aliases say, against a stand-in for the
Kubernetes API over HTTP: conflicts, never ready, deleted meanwhile, forbidden, killed half-way."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.inference_service import InferenceServices
from deploy.migrations import upgrade
from deploy.reconcile import Orders, Reconciler
from gateway.audit import AuditEntry, AuditFilter, entries
from gateway.configuration import ConfigurationError, parse_configuration
from gateway.database import Database, open_database
from pipelines.champion import Move, Services, hold, move_champion
from pipelines.cluster import Kubeflow, kubeflow_of
from pipelines.experiment import stop_running
from pipelines.json_server import JsonServer
from tests.deploy.kubernetes_api import TOKEN, Cluster, KubernetesAPI, kubernetes_api
from tests.gateway_process import configuration
from tests.pipelines.lifecycle import ALIAS, adapter_name, begin, plan, seed_version

NAME = "extractor-serving"
PLAN = Kubeflow.model_validate(
    {
        "kubernetes": {"namespace": "models"},
        "inference_services": {
            ALIAS: {
                "name": NAME,
                "storage_uri": "s3://models/{served_name}",
                "ready_within": "1s",
            }
        },
    }
)


class Loaded:
    """An engine that serves every adapter at once."""

    async def load(self, adapter: str, path: Path, within: float = 0) -> object:
        return adapter


@dataclass
class Office:
    """A state database and a cluster."""

    database: Database
    api: KubernetesAPI
    plan: Kubeflow = PLAN
    token: str = TOKEN
    said: list[str] = field(default_factory=list)

    @property
    def cluster(self) -> Cluster:
        return self.api.cluster

    def move(self, version: str, kind: str = "promote") -> None:
        with self.database.transaction() as session:
            hold(session)
            move_champion(session, Move(kind, ALIAS, ALIAS, version, "anna", "it is better"))

    def experiment(self, version: str, weight: float) -> None:
        services = Services(self.database, Loaded())
        asyncio.run(begin(services, version, plan=plan(weight=weight)))

    def stop(self) -> None:
        with self.database.transaction() as session:
            hold(session)
            stop_running(session, ALIAS, "enough", "anna")

    def run(self, *, force: bool = False, **orders: Any) -> bool:
        server = JsonServer("Kubernetes", self.api.url, self.token)
        services = InferenceServices(server, "models", force=force)
        given = Orders("cli:ben", poll_seconds=0.01, **orders)
        self.said = []
        reconciler = Reconciler(self.database, self.plan, services, given)
        return asyncio.run(reconciler.run(self.said.append))

    def trail(self, action: str) -> list[AuditEntry]:
        """Oldest first."""
        with self.database.session() as session:
            return list(reversed(entries(session, AuditFilter(action=action))))

    @property
    def predictor(self) -> dict[str, Any]:
        """What the InferenceService says."""
        found: dict[str, Any] = self.cluster.objects[NAME]["spec"]["predictor"]
        return found

    @property
    def traffic(self) -> dict[str, int]:
        return self.cluster.traffic[NAME]


def uri(version: str) -> str:
    return f"s3://models/{adapter_name(version)}"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    upgrade(f"sqlite:///{tmp_path / 'state.db'}")
    database = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    for version in ("1", "2", "3"):
        seed_version(database, version)
    with kubernetes_api(Cluster()) as api:
        yield Office(database, api)
    database.close()


def test_a_champion_is_served_and_a_second_run_sends_nothing(office: Office) -> None:
    office.move("1")
    assert office.run(), office.said
    assert office.predictor == {
        "model": {
            "modelFormat": {"name": "mlflow"},
            "protocolVersion": "v2",
            "storageUri": uri("1"),
        }
    }
    (ready,) = office.trail("serving.ready")
    assert ready.change.subject == f"inference_service:models/{NAME}"
    assert ready.change.after == {"version": "1", "uri": uri("1"), "percent": None}
    assert ready.change.actor == "cli:ben"
    assert office.run()
    assert office.said == [f"{ALIAS}: {NAME} serves version 1 ({uri('1')}), nothing to change"]
    assert len(office.cluster.patches) == 1 and office.cluster.calls[-1] == "GET"


def test_what_is_no_longer_ready_is_told_and_left_alone(office: Office) -> None:
    office.move("1")
    assert office.run(), office.said
    office.cluster.failing.add(uri("1"))
    assert not office.run()
    (said,) = office.said
    assert "was ready, and is not now: Ready is True, BlockedByFailedLoad: MLmodel" in said
    assert not office.run(dry=True)
    assert len(office.cluster.patches) == 1 and not office.trail("serving.reverted")


def test_an_experiment_is_a_canary_beside_the_champion(office: Office) -> None:
    office.move("1")
    office.experiment("2", 0.2)
    assert office.run(), office.said
    assert [one["spec"]["predictor"]["model"]["storageUri"] for one in office.cluster.patches] == [
        uri("1"),
        uri("2"),
    ], "the champion was rolled out whole before"
    assert office.traffic == {uri("1"): 80, uri("2"): 20}
    assert office.run() and len(office.cluster.patches) == 2
    office.stop()
    office.move("2")
    assert office.run(), office.said
    assert "canaryTrafficPercent" not in office.predictor
    assert office.traffic == {uri("2"): 100}
    assert len(office.cluster.revisions[NAME]) == 2, "the winner's revision, not another one"


def test_a_loser_goes_back_to_the_champion(office: Office) -> None:
    office.move("1")
    office.experiment("2", 0.5)
    office.run()
    office.stop()
    assert office.run(), office.said
    assert office.traffic == {uri("1"): 100}


def test_a_rollback_is_followed(office: Office) -> None:
    office.move("1")
    office.run()
    office.move("2")
    office.run()
    office.move("1", "rollback")
    assert office.run()
    assert office.traffic == {uri("1"): 100}


def test_what_never_gets_ready_goes_back_and_is_not_tried_again(office: Office) -> None:
    office.move("1")
    office.run()
    office.cluster.never_ready.add(uri("2"))
    office.move("2")
    assert not office.run()
    assert f"version 2 ({uri('2')}) is not ready within 1 s" in office.said[-1]
    assert f"it went back to version 1 ({uri('1')})" in office.said[-1]
    assert office.predictor["model"]["storageUri"] == uri("1")
    (reverted,) = office.trail("serving.reverted")
    assert reverted.change.before == {"version": "2", "uri": uri("2"), "percent": None}
    assert reverted.change.after == {"uri": uri("1")} and "not ready" in str(reverted.change.reason)
    sent = len(office.cluster.patches)
    assert not office.run() and "is not tried again without --retry" in office.said[-1]
    assert len(office.cluster.patches) == sent
    office.cluster.never_ready.clear()
    assert office.run(retry=True), office.said
    assert office.traffic == {uri("2"): 100}


def test_a_canary_that_cannot_be_loaded_goes_back_at_once(office: Office) -> None:
    office.plan = with_seconds("60s")
    office.move("1")
    office.run()
    office.cluster.failing.add(uri("2"))
    office.experiment("2", 0.1)
    assert not office.run()
    assert "BlockedByFailedLoad: MLmodel: not found; it went back to version 1" in office.said[-1]
    assert office.predictor["model"]["storageUri"] == uri("1")
    assert "canaryTrafficPercent" not in office.predictor


def test_the_first_one_has_nothing_to_go_back_to(office: Office) -> None:
    office.cluster.never_ready.add(uri("1"))
    office.move("1")
    assert not office.run()
    assert "there is nothing to go back to" in office.said[-1]
    assert len(office.trail("serving.reverted")) == 1


def test_deleted_meanwhile_it_is_made_anew_by_the_next_run(office: Office) -> None:
    office.move("1")
    office.cluster.script.extend([("GET", 404, "not found"), ("GET", "delete", "")])
    assert not office.run()
    assert "was deleted meanwhile" in office.said[-1]
    assert office.cluster.objects == {} and office.trail("serving.ready") == []
    assert office.run() and office.traffic == {uri("1"): 100}


def test_fields_of_others_are_taken_over_only_by_force(office: Office) -> None:
    office.move("1")
    office.run()
    office.cluster.owners[NAME]["predictor.model.storageUri"] = "kubectl-edit"
    office.cluster.objects[NAME]["spec"]["predictor"]["model"]["storageUri"] = "s3://by/hand"
    office.move("2")
    assert not office.run()
    assert 'conflict with "kubectl-edit" using serving.kserve.io/v1beta1: .spec.' in office.said[-1]
    assert office.predictor["model"]["storageUri"] == "s3://by/hand"
    assert office.run(force=True), office.said
    assert office.traffic == {uri("2"): 100}


def test_fields_that_we_do_not_say_stay_as_others_set_them(office: Office) -> None:
    office.move("1")
    office.run()
    office.cluster.objects[NAME]["spec"]["predictor"]["minReplicas"] = 3
    office.cluster.owners[NAME]["predictor.minReplicas"] = "kubectl-edit"
    assert office.run() and len(office.cluster.patches) == 1
    office.move("2")
    assert office.run() and office.predictor["minReplicas"] == 3


def test_a_passing_conflict_is_tried_again(office: Office) -> None:
    office.move("1")
    told = "Operation cannot be fulfilled: the object has been modified; please apply your changes"
    office.cluster.script.extend([("PATCH", 409, told)] * 2)
    assert office.run(), office.said


def test_who_may_not_is_told_so(office: Office) -> None:
    office.move("1")
    forbidden = 'inferenceservices.serving.kserve.io is forbidden: User "llmops" cannot patch'
    office.cluster.script.append(("PATCH", 403, forbidden))
    assert not office.run()
    assert "403" in office.said[-1] and "cannot patch" in office.said[-1]
    office.token = "a-wrong-token"
    assert not office.run()
    assert "401 Unauthorized" in office.said[-1] and "a-wrong-token" not in office.said[-1]


def test_an_api_that_is_away_for_a_while_is_waited_for(office: Office) -> None:
    office.move("1")
    office.cluster.looks = 2
    waited = ("GET", 404, "not found"), ("GET", 500, "etcd"), ("GET", 503, "etcd")
    office.cluster.script.extend(waited)
    assert office.run(), office.said


def test_killed_while_it_waits_the_next_run_goes_on(office: Office) -> None:
    office.move("1")
    office.run()
    office.cluster.never_ready.add(uri("2"))
    office.move("2")
    office.plan = with_seconds("60s")
    with pytest.raises(TimeoutError):
        server = JsonServer("Kubernetes", office.api.url, TOKEN)
        reconciler = Reconciler(
            office.database,
            office.plan,
            InferenceServices(server, "models"),
            Orders("cli:ben", poll_seconds=0.01),
        )
        asyncio.run(asyncio.wait_for(reconciler.run(office.said.append), 0.5))
    assert office.predictor["model"]["storageUri"] == uri("2")
    office.plan = PLAN
    assert not office.run()
    assert "it went back to version 1" in office.said[-1]


def test_without_revisions_the_childs_counter_says_that_it_was_taken_up(office: Office) -> None:
    """Standard mode: Ready stays True from before, and must not be taken for the new one's."""
    office.cluster.standard = True
    office.move("1")
    assert office.run(), office.said
    office.cluster.looks = 5
    office.move("2")
    calls = len(office.cluster.calls)
    assert office.run(), office.said
    assert len(office.cluster.calls) - calls > 10 and office.traffic == {uri("2"): 100}


def test_ready_of_the_revision_before_is_not_taken_for_the_new_ones(office: Office) -> None:
    office.move("1")
    office.run()
    office.cluster.hasty = True
    office.cluster.never_ready.add(uri("2"))
    office.move("2")
    assert not office.run()
    assert "it went back to version 1" in office.said[-1]


def test_a_dry_run_shows_and_sends_nothing(office: Office) -> None:
    office.move("1")
    assert office.run(dry=True)
    assert f"+      storageUri: {uri('1')}" in office.said[-1]
    assert set(office.cluster.calls) == {"GET"} and office.trail("serving.ready") == []
    office.run()
    office.experiment("2", 0.3)
    assert office.run(dry=True)
    assert "+    canaryTrafficPercent: 30" in office.said[-1]
    assert f"-      storageUri: {uri('1')}" in office.said[-1]
    assert len(office.cluster.patches) == 1


def test_nothing_is_served_before_there_is_a_champion(office: Office) -> None:
    assert office.run() and "no version is champion yet" in office.said[-1]
    assert office.cluster.calls == []


def test_the_base_model_answers_before_there_is_a_champion(office: Office) -> None:
    base = "s3://models/base"
    service = PLAN.inference_services[ALIAS].model_copy(
        update={"base_storage_uri": base, "model_format": "huggingface"}
    )
    office.plan = PLAN.model_copy(update={"inference_services": {ALIAS: service}})
    office.experiment("1", 0.25)
    assert office.run(), office.said
    assert office.traffic == {base: 75, uri("1"): 25}
    assert office.predictor["model"]["modelFormat"] == {"name": "huggingface"}


def with_seconds(span: str) -> Kubeflow:
    seconds = float(span.removesuffix("s"))
    service = PLAN.inference_services[ALIAS].model_copy(update={"ready_within": seconds})
    return PLAN.model_copy(update={"inference_services": {ALIAS: service}})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("s3://models/{tenant}", "nothing else"),
        ("s3://models/latest", "the same for every version"),
        ("models/{version}", "storage_uri"),
    ],
)
def test_an_address_that_cannot_be_is_refused(template: str, message: str) -> None:
    given = configuration(
        "http://127.0.0.1:9/v1", kubeflow={"inference_services": {"a": {"storage_uri": template}}}
    )
    with pytest.raises(ConfigurationError, match=message):
        kubeflow_of(parse_configuration(yaml.safe_dump(given)))
