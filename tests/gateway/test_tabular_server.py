"""Predictions: a real worker, KServe's model server, Redis, and models that were fitted.

The tests of a module share the processes; what stops one starts it again.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pandas as pd
import pytest

from gateway.database import open_database
from gateway.splits import drop_split, put_split
from gateway.variants import Arm, Split, Variant
from pipelines.model_server_replica import ModelServerReplica
from pipelines.rollout import Replicas, RolloutFailed
from tests.admin_process import AdminProcess
from tests.embedding_stack import RedisProcess
from tests.gateway_process import GatewayProcess, configuration, free_port
from tests.tabular_home import (
    ALIAS,
    FLIGHT,
    SERVICE,
    ModelServerProcess,
    fill_features,
    flight,
    made_up_rows,
    quietly,
    save_booster,
    save_version,
    served,
)

PREDICT, INFER = f"/v1/predict/{ALIAS}", f"/v2/models/{ALIAS}/infer"
ONE, TWO, BOOSTER, ALONE = served("1a"), served("2b"), served("3c"), served("4d")
PICKLED, TORN, CHANGED, STRANGE = served("5e"), served("6f"), served("70"), served("7a")
MICRO_USD = 1000  # nano-USD; the configured price of one prediction is two of them


@dataclass(frozen=True)
class Stand:
    """Everything that runs."""

    gateway: GatewayProcess
    server: ModelServerProcess
    redis: RedisProcess
    tabular: Path

    def replicas(self) -> Replicas:
        return Replicas([self.server.url], replica=ModelServerReplica)

    async def load(self, *names: str) -> None:
        for name in names:
            await self.replicas().load(name, self.tabular / name, within=60)


def make_versions(tabular: Path) -> None:
    save_version(tabular, ONE)
    save_version(tabular, TWO, seed=1)
    save_booster(tabular, BOOSTER)
    save_version(tabular, ALONE, metadata={})
    save_version(tabular, PICKLED, serialization_format="cloudpickle")
    save_version(tabular, CHANGED, columns={"miles": "leagues"})
    save_version(tabular, STRANGE, metadata={"feature_service": "departure_delay"})
    shutil.copytree(tabular / ONE, tabular / TORN)
    torn = tabular / TORN / "model.skops"
    torn.write_bytes(torn.read_bytes()[:-2000])


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    home = tmp_path_factory.mktemp("predictions") / "home"
    port = free_port()
    with RedisProcess(tmp_path_factory.mktemp("redis")) as redis:
        given = configuration(
            "http://127.0.0.1:9/v1",
            upstreams={"kserve": {"kind": "kserve", "url": f"http://127.0.0.1:{port}/v2"}},
            models={
                ALIAS: {"upstream": "kserve", "model": ONE, "price": {"predictions": 2}},
                "tried": {"upstream": "kserve", "price": {"predictions": 2}},
                "absent": {"upstream": "kserve", "model": served("ff")},
            },
            model_server={"port": port, "redis_url": redis.url},
            limits={"instances": 100},
            feedback={"metrics": {"late": {"type": "boolean"}}},
        )
        gateway = GatewayProcess(home, given)
        server = ModelServerProcess(gateway.environ, port)
        try:
            make_versions(gateway.settings.tabular_dir)
            fill_features(home, redis.url)
            gateway.start()
            server.start()
            yield Stand(gateway, server, redis, gateway.settings.tabular_dir)
        finally:
            server.kill()
            gateway.stop()


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[aiohttp.ClientSession]:
    await stand.load(ONE)
    headers = {"authorization": f"Bearer {stand.gateway.key}"}
    async with aiohttp.ClientSession(stand.gateway.url, headers=headers) as session:
        yield session


def inputs(**columns: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": [1],
            "datatype": "BYTES" if isinstance(value, str) else "FP64",
            "data": [value],
        }
        for name, value in columns.items()
    ]


async def ask(client: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with client.post(path, json=body) as answer:
        return answer.status, orjson.loads(await answer.read())


@quietly
def pyfunc_answers(folder: Path, rows: list[dict[str, Any]]) -> list[float]:
    """What MLflow itself answers to rows of features."""
    import mlflow.pyfunc

    found = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame(rows).astype(float))
    return [float(row[1]) if getattr(row, "ndim", 0) else float(row) for row in found]


async def test_a_prediction_is_completed_answered_and_logged(client, stand):
    body = {
        "instances": [FLIGHT, flight(carrier="DL", route="LGA-ATL"), flight(carrier="ZZ")],
        "user": "gate-1", "episode_id": "flight-7", "tags": {"app": "board"},
    }  # fmt: skip
    async with client.post(PREDICT, json=body, headers={"x-request-id": "mine"}) as response:
        said = await response.read()
    answer = orjson.loads(said)
    assert response.status == 200
    assert (answer["model"], answer["version"]) == (ALIAS, ONE)
    first, second, unknown = answer["features"]
    assert (first["carrier_flights_30d"], second["carrier_flights_30d"]) == (0.25, 1.5)
    assert unknown["carrier_flights_30d"] is None and unknown["route_flights_30d"] == 0.25
    assert (first["hour"], first["miles"], first["visib"]) == (10.5, 2475.0, 6.0)
    answered = [one["probability"] for one in answer["predictions"]]
    assert answered == pyfunc_answers(stand.tabular / ONE, answer["features"])
    assert response.headers["x-model"] == f"kserve/{ONE}"
    assert response.headers["x-response-cost"] == "0.000006000"
    row = stand.gateway.row(response.headers["x-request-id"])
    assert row.response == said and orjson.loads(row.request) == body
    meta = row.meta
    assert (meta["endpoint"], meta["status"], meta["model"]) == ("predict", "ok", ALIAS)
    assert (meta["adapter"], meta["target"]) == (ONE, f"kserve/{ONE}")
    assert (meta["user"], meta["episode_id"]) == ("gate-1", "flight-7")
    assert meta["tags"] == {"app": "board", "client_request_id": "mine"}
    assert (meta["cost_nano_usd"], meta["usage_source"]) == (6 * MICRO_USD, "counted")
    assert answer["id"] == meta["request_id"]


async def test_the_inference_protocol_answers_the_same(client, stand):
    _, predicted = await ask(client, PREDICT, {"instances": [FLIGHT]})
    parameters = {"features": True, "user": "gate-1"}
    body = {"id": "7", "inputs": inputs(**FLIGHT), "parameters": parameters}
    async with client.post(INFER, json=body) as response:
        answer = orjson.loads(await response.read())
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (ALIAS, ONE, "7")
    columns = {output["name"]: output["data"] for output in answer["outputs"]}
    assert columns.pop("probability") == [predicted["predictions"][0]["probability"]]
    assert {name: data[0] for name, data in columns.items()} == predicted["features"][0]
    row = stand.gateway.row(response.headers["x-request-id"])
    assert (row.meta["endpoint"], row.meta["user"]) == ("infer", "gate-1")
    logged = orjson.loads(row.response)
    assert logged["features"] == predicted["features"]
    assert logged["predictions"] == predicted["predictions"]


async def test_kserves_own_client_works(client, stand):
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    theirs = InferenceRESTClient(RESTConfig(protocol="v2"))
    url, headers = stand.gateway.url, {"authorization": f"Bearer {stand.gateway.key}"}
    assert await theirs.is_server_ready(url) and await theirs.is_server_live(url)
    assert await theirs.is_model_ready(url, ALIAS, headers=headers)
    tensors = [
        InferInput(one["name"], one["shape"], one["datatype"], one["data"])
        for one in inputs(**FLIGHT)
    ]
    answer = await theirs.infer(url, InferRequest(ALIAS, tensors), ALIAS, headers=headers)
    _, predicted = await ask(client, PREDICT, {"instances": [FLIGHT]})
    assert answer.outputs[0].data == [predicted["predictions"][0]["probability"]]
    async with client.get(f"/v2/models/{ALIAS}") as response:
        described = await response.json()
    assert described["name"] == ALIAS and described["versions"] == [ONE]
    assert [one["name"] for one in described["inputs"]] == list(FLIGHT)


async def test_a_prediction_is_looked_up_labelled_and_counted(client, stand):
    _, answer = await ask(client, PREDICT, {"instances": [FLIGHT] * 3})
    label = {"request_id": answer["id"], "metric_name": "late", "value": True}
    assert (await ask(client, "/v1/feedback", label))[0] == 200
    with AdminProcess(stand.gateway.home, stand.gateway.given) as admin:
        async with client.get(f"/v1/requests/{answer['id']}") as response:
            row = await response.json()
        assert (row["endpoint"], row["target"], row["cost_usd"]) == (
            "predict", f"kserve/{ONE}", "0.000006000",
        )  # fmt: skip
        counted = f'llmops_cost_usd_total{{endpoint="predict",model="{ALIAS}",target="kserve"}}'
        assert counted in admin.get("/metrics")[1].decode()


async def test_features_that_are_given_count(client, stand):
    _, read = await ask(client, PREDICT, {"instances": [FLIGHT]})
    features = read["features"][0]
    _, given = await ask(client, PREDICT, {"instances": [features]})
    assert given["predictions"] == read["predictions"]
    mine = flight(humid=99.5, temp=None)
    _, mixed = await ask(client, PREDICT, {"instances": [mine]})
    assert mixed["features"] == [{**features, "humid": 99.5, "temp": None}]


async def test_a_callers_mistake_is_no_failure_of_the_model(client, stand):
    async with client.post(PREDICT, json={"instances": [flight(dep_delay=4)]}) as response:
        assert response.status == 400
    assert stand.gateway.row(response.headers["x-request-id"]).meta["status"] == "rejected"


LACKING = {name: value for name, value in FLIGHT.items() if name != "carrier"}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (LACKING, "'carrier' is missing"),
        (flight(dep_delay=4), "'dep_delay' is unknown"),
        (flight(distance="far"), "'distance' is 'far'"),
        (flight(carrier=7), "'carrier' is 7"),
        (flight(distance=None), "'distance' is missing"),
        (flight(scheduled_departure="2013-06-01T14:30"), "no time zone"),
        (flight(scheduled_departure="soon"), "'scheduled_departure' is 'soon'"),
        (flight(carrier=""), "'carrier' is empty"),
        (flight(humid="wet"), "'humid' is 'wet'"),
    ],
)
async def test_a_column_that_does_not_fit_is_named_in_both_forms(client, stand, row, named):
    status, answer = await ask(client, PREDICT, {"instances": [row]})
    error = answer["error"]
    assert (status, error["type"], error["code"]) == (
        400,
        "invalid_request_error",
        "invalid_request",
    )
    assert named in error["message"] and f"'{error['param']}'" in error["message"]
    status, answer = await ask(client, INFER, {"inputs": inputs(**row)})
    assert status == 400
    assert named in answer["error"] or "distance" in answer["error"]  # a null is FP64


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (PREDICT, {}, "'instances' is missing"),
        (PREDICT, {"instances": [FLIGHT] * 101}, "1 to 100 rows"),
        (PREDICT, {"instances": [FLIGHT, LACKING]}, "instances[1] has no 'carrier'"),
        (PREDICT, {"instances": [FLIGHT], "explain": True}, "Unknown field 'explain'"),
        (PREDICT, [FLIGHT], "must be a JSON object"),
        (INFER, {"inputs": {}}, "'inputs' must be a non-empty list"),
        (INFER, {"inputs": [{**inputs(**FLIGHT)[0], "shape": [2]}]}, "'carrier' must have 2"),
        (INFER, {"inputs": [{**inputs(**FLIGHT)[0], "datatype": "FP16"}]}, "'carrier' must be one"),
        (INFER, {"inputs": [{**inputs(**FLIGHT)[0], "datatype": "INT8"}]}, "'carrier' is not INT8"),
        (INFER, {"instances": [FLIGHT]}, "Unknown field 'instances'"),
    ],
)
async def test_a_malformed_request_is_refused_before_the_server(client, stand, path, body, named):
    async with client.post(path, json=body) as response:
        answer = orjson.loads(await response.read())
    assert response.status == 400
    assert named in (answer["error"] if path == INFER else answer["error"]["message"])
    assert stand.gateway.row(response.headers["x-request-id"]).meta["status"] == "rejected"


async def test_many_at_once_get_each_its_own(client, stand):
    _, read = await ask(client, PREDICT, {"instances": [FLIGHT]})
    kinds = [
        [FLIGHT],
        [flight(carrier="DL"), flight(carrier="ZZ")],
        [flight(dep_delay=4)],
        read["features"],
        [flight(humid=99.5)],
    ]
    alone = [await ask(client, PREDICT, {"instances": rows}) for rows in kinds]
    together = await asyncio.gather(
        *(ask(client, PREDICT, {"instances": rows}) for rows in kinds * 20)
    )
    for (status, answer), (was_status, was) in zip(together, alone * 20, strict=True):
        assert status == was_status
        for part in ("predictions", "features"):
            assert answer.get(part) == was.get(part)
        assert answer.get("error") == was.get("error")


async def test_who_may_ask_what(client, stand):
    async with aiohttp.ClientSession(stand.gateway.url) as nobody:
        assert (await ask(nobody, PREDICT, {"instances": [FLIGHT]}))[0] == 401
        status, answer = await ask(nobody, INFER, {"inputs": inputs(**FLIGHT)})
        assert (status, isinstance(answer["error"], str)) == (401, True)
    status, answer = await ask(client, "/v1/predict/gpt", {"instances": [FLIGHT]})
    assert (status, answer["error"]["code"]) == (400, "not_tabular")  # the wildcard has it
    chat = {"model": ALIAS, "messages": [{"role": "user", "content": "late?"}]}
    status, answer = await ask(client, "/v1/chat/completions", chat)
    assert (status, answer["error"]["code"]) == (400, "tabular_model")
    assert PREDICT in answer["error"]["message"]
    status, answer = await ask(client, "/v1/predict/tried", {"instances": [FLIGHT]})
    assert (status, answer["error"]["code"]) == (503, "no_version")
    assert "llmops train" in answer["error"]["message"]
    status, answer = await ask(client, "/v1/predict/absent", {"instances": [FLIGHT]})
    assert (status, answer["error"]["code"]) == (503, "version_not_loaded")
    async with client.get("/v2/models/absent/ready") as response:
        assert response.status == 503 and "error" in await response.json()
    async with client.get(PREDICT) as response:
        assert response.status == 405


async def test_versions_come_and_go_beside_each_other(client, stand):
    await stand.load(ONE, TWO, BOOSTER, ALONE)
    assert await stand.replicas().served(stand.server.url) == {ONE, TWO, BOOSTER, ALONE}
    rows = made_up_rows(3)[0].head(5).to_dict("records")
    tensors = [
        {"name": name, "shape": [5, 1], "datatype": "FP64", "data": [[row[name]] for row in rows]}
        for name in rows[0]
    ]
    async with aiohttp.ClientSession() as direct:
        for name in (ONE, TWO, BOOSTER, ALONE):
            url = f"{stand.server.url}/models/{name}/infer"
            status, answer = await ask(direct, url, {"inputs": tensors})
            assert status == 200, answer
            expected = pyfunc_answers(stand.tabular / name, rows)
            assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-7)
        status, answer = await ask(
            direct, f"{stand.server.url}/models/{ALONE}/infer", {"inputs": tensors[1:]}
        )
        assert (status, "'carrier_flights_30d' is missing" in answer["error"]) == (400, True)
        status, answer = await ask(direct, f"{stand.server.url}/models/{ONE}/infer", {"inputs": 1})
        assert (status, "inputs" in answer["error"]) == (400, True)
    await stand.replicas().unload(TWO)
    assert await stand.replicas().served(stand.server.url) == {ONE, BOOSTER, ALONE}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (PICKLED, "saved as cloudpickle"),
        (TORN, "cannot be read"),
        (CHANGED, f"was fitted on 'leagues', which feature service '{SERVICE}' does not have"),
        (STRANGE, "departure_delay"),
        (served("80"), "no such folder"),
        (f".{ONE}", "no version's name"),
    ],
)
async def test_what_cannot_be_served_says_why_and_changes_nothing(client, stand, name, reason):
    before = await stand.replicas().served(stand.server.url)
    with pytest.raises(RolloutFailed) as failed:
        await stand.load(name)
    assert reason in str(failed.value)
    assert await stand.replicas().served(stand.server.url) == before
    assert (await ask(client, PREDICT, {"instances": [FLIGHT]}))[0] == 200


async def test_an_experiment_shares_an_alias_by_its_users(client, stand):
    await stand.load(ONE, TWO)
    arms = (Arm(Variant("champion", adapter=ONE), 1), Arm(Variant("challenger", adapter=TWO), 1))
    database = open_database(stand.gateway.settings.database_url)
    with database.transaction() as session:
        put_split(session, Split("tried", arms, "experiment-1", "00112233"))

    async def versions() -> dict[str, tuple[str, str]]:
        found = {}
        for user in map(str, range(12)):
            body = {"instances": [FLIGHT], "user": user}
            async with client.post("/v1/predict/tried", json=body) as response:
                answer = await response.json()
                if response.status == 200:
                    found[user] = (response.headers["x-variant"], answer["version"])
        return found

    found: dict[str, tuple[str, str]] = {}
    while len(found) < 12:
        found = await versions()
    assert set(found.values()) == {("champion", ONE), ("challenger", TWO)}
    assert await versions() == found
    async with client.get("/v2/models/tried/ready") as response:
        assert await response.json() == {"name": "tried", "ready": True}
    rows = [row.meta for row in stand.gateway.finals().values() if row.meta["model"] == "tried"]
    counted = [row for row in rows if row["status"] == "ok"]
    assert {(row["user"], row["variant"], row["adapter"]) for row in counted} == {
        (user, *arm) for user, arm in found.items()
    }
    assert {row["experiment"] for row in counted} == {"experiment-1"}
    with database.transaction() as session:
        drop_split(session, "tried")
    database.close()


async def test_without_redis_only_what_needs_it_waits(client, stand):
    _, read = await ask(client, PREDICT, {"instances": [FLIGHT]})
    stand.redis.freeze()
    try:
        status, answer = await ask(client, PREDICT, {"instances": [FLIGHT]})
        assert (status, answer["error"]["code"]) == (503, "model_server_not_ready")
        assert "online store" in answer["error"]["message"]
        assert (await ask(client, PREDICT, {"instances": read["features"]}))[0] == 200
    finally:
        stand.redis.thaw()
    assert (await ask(client, PREDICT, {"instances": [FLIGHT]}))[1]["features"] == read["features"]


async def test_a_server_that_comes_back_serves_what_it_served(client, stand):
    await stand.load(ONE, BOOSTER)
    before = await stand.replicas().served(stand.server.url)
    note = next((stand.gateway.home / "run").glob("model-server-*.json"))
    note.write_text(json.dumps([*json.loads(note.read_text()), TORN, STRANGE]))
    assert stand.server.stop() == 0
    status, answer = await ask(client, PREDICT, {"instances": [FLIGHT]})
    assert (status, answer["error"]["code"]) == (503, "model_server_away")
    stand.server.start()
    assert await stand.replicas().served(stand.server.url) == before
    for name in (TORN, STRANGE):
        assert f"{name} is not loaded again" in stand.server.output()

    assert (await ask(client, PREDICT, {"instances": [FLIGHT]}))[0] == 200
