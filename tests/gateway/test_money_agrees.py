"""One price, many views: header, usage event, log, sums, metrics and look-up agree to the digit."""

import json
import time
from decimal import Decimal
from itertools import cycle
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.configuration import load_configuration
from gateway.costs import costs, total
from gateway.records import NANO_PER_USD
from gateway.request_log import LogReader
from tests.admin_process import AdminProcess
from tests.gateway_process import GatewayProcess

CHAT = "/v1/chat/completions"
REQUESTS = 40
SCRIPTS = ("tokens=1", "tokens=7", "cached=1,tokens=3", "reasoning=2,tokens=9", "no-usage")


@pytest.fixture
def admin(gateway: GatewayProcess):
    with AdminProcess(gateway.home, gateway.given) as process:
        yield process


async def spend(client: aiohttp.ClientSession) -> dict[str, Decimal]:
    """Requests of every kind; what each was said to cost."""
    told = {}
    for index, script in zip(range(REQUESTS), cycle(SCRIPTS), strict=False):
        body: dict[str, Any] = {
            "model": f"chat,{script}",
            "messages": [{"role": "user", "content": f"question {index}"}],
            "user": f"user-{index % 3}",
        }
        if index % 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with client.post(CHAT, json=body) as response:
            received = (await response.read()).decode()
        request_id = response.headers["x-request-id"]
        if index % 2:
            last = received.split("\n\n")[-3].removeprefix("data: ")
            told[request_id] = json.loads(last, parse_float=Decimal)["usage"]["cost"]
        else:
            told[request_id] = Decimal(response.headers["x-response-cost"])
    return told


async def test_every_view_of_the_money_is_the_same(client, gateway, admin):
    told = await spend(client)
    reader = LogReader.open(gateway.settings, load_configuration(gateway.config_path).log)
    logged = {row["request_id"]: row["cost_usd"] for row in reader.rows() if row["cost_usd"]}
    assert {request_id: logged[request_id] for request_id in told} == told
    whole = sum(logged.values(), Decimal(0))
    for dimension in ("model", "user", "key", "team"):
        assert total(costs(reader, by=dimension)).cost_usd == whole
    request_id, cost = next(iter(told.items()))
    async with client.get(f"/v1/requests/{request_id}") as response:
        assert Decimal((await response.json())["cost_usd"]) == cost
    assert metric(admin, "llmops_cost_usd_total", wait_for=whole) == whole
    assert metric(admin, "llmops_requests_total") == len(list(reader.rows()))


def metric(admin: AdminProcess, name: str, wait_for: Decimal | None = None) -> Decimal:
    """The sum of a metric over all its labels, to nine places."""
    end = time.monotonic() + 5
    while True:
        _, text = admin.get("/metrics")
        found = sum(
            round(sample.value * NANO_PER_USD)
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            if sample.name == name
        )
        value = Decimal(found) / NANO_PER_USD
        if wait_for is None or value == wait_for or time.monotonic() > end:
            return value
        time.sleep(0.1)
